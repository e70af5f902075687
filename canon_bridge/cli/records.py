"""Plans and audits as JSON."""

import json
from dataclasses import asdict
from typing import Any

from canon_bridge import Audit, Merge, Plan, Refusal, Untangled


def plan_json(plan: Plan) -> str:
    """Return all that a plan says, as JSON."""
    options = plan.options
    record = {
        "model": plan.model,
        "options": {"prefer": options.prefer, "clipped": options.clipped, "leftover": options.leftover},
        "total": {
            "batch_norms": len(plan.entries),
            "merged_left": sum(merge.chain.direction == "left" for merge in plan.merges),
            "merged_right": sum(merge.chain.direction == "right" for merge in plan.merges),
            "merged_into_copies": len(plan.untangled),
            "linear_layers": len(plan.leftovers),
            "left_as_they_are": len(plan.refusals),
            "operations_made_modules": sum(len(rewrite.children) for rewrite in plan.rewrites),
            "uncovered": len(plan.uncovered),
        },
        "batch_norms": [_entry(number, entry) for number, entry in enumerate(plan.entries, 1)],
        "uncovered": [asdict(found) for found in plan.uncovered],
        "made_modules": [
            {"path": rewrite.path, "modules": [name for name, _ in rewrite.children]}
            for rewrite in plan.rewrites
            if rewrite.children
        ],
        "out_of_place": plan.out_of_place,
        "computed_weights": plan.plain,
        "expanded": plan.expanded,
        "stand_ins": dict(plan.stand_ins),
    }
    return json.dumps(record, indent=2)


def _entry(order: int, entry: Any) -> dict[str, Any]:
    if isinstance(entry, Merge):
        chain = entry.chain
        return {
            "order": order,
            "path": chain.norm,
            "what": "merged",
            "direction": chain.direction,
            "channels": chain.width,
            "into": chain.targets,
            "absorbed_by": chain.absorbers,
            "through": chain.through,
        }
    if isinstance(entry, Untangled):
        return {
            "order": order,
            "path": entry.norm,
            "what": "merged into copies",
            "channels": len(entry.index),
            "into": entry.targets,
            "channels_to_a_linear_layer": len(entry.rest),
            "through": entry.through,
        }
    what = "left as it is" if isinstance(entry, Refusal) else "made a linear layer"
    return {"order": order, "path": entry.norm, "what": what, "reason": entry.reason}


def audit_json(audit: Audit) -> str:
    """Return all that an audit says, as JSON; numbers that JSON has not are null."""
    numbers = {"defect": audit.defect, "defect_of_flow": audit.defect_of_flow, "lost": audit.lost}
    record = asdict(audit) | {"totals": dict(audit.totals())} | numbers
    return json.dumps(_finite(record), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and value - value != 0 else value
