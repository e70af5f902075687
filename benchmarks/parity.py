"""Do zennit and Captum give the same map? And where does the relevance of a densenet121 go? Figures for the docs.

python -m benchmarks.parity --markdown docs/parity.md --audit docs/audit.md --chart docs/audit_densenet121.png
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import zennit.composites
from torch import Tensor, nn
from tqdm import tqdm
from zennit.core import Composite

from benchmarks.files import write_whole
from canon_bridge import audit
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support import zoo
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.statistics import randomize_called

MODELS = ("densenet121", "resnet18", "vgg11_bn", "googlenet", "mobilenet_v2", "efficientnet_b0")
BOX = {"low": -3.0, "high": 3.0}


PRESETS: dict[str, tuple[Callable[..., Composite], dict[str, float]]] = {
    "epsilon": (partial(epsilon_composite, 1e-9), {}),
    "epsilon_plus": (zennit.composites.EpsilonPlus, {}),
    "epsilon_plus_flat": (zennit.composites.EpsilonPlusFlat, {}),
    "epsilon_alpha2_beta1": (zennit.composites.EpsilonAlpha2Beta1, {}),
    "epsilon_alpha2_beta1_flat": (zennit.composites.EpsilonAlpha2Beta1Flat, {}),
    "epsilon_gamma_box": (zennit.composites.EpsilonGammaBox, BOX),
}
SETTINGS = [(prefer, clipped) for prefer in ("left", "right") for clipped in ("absorb", "pass")]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model in float64 with random BatchNorm statistics of both signs, and two images."""
    torch.manual_seed(0)
    model = zoo.build(f"torchvision/{name}").double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64).clamp(-3, 3)
    randomize_called(model, (x,))
    return model, x


def difference(model: nn.Module, x: Tensor, preset: str, prefer: str, clipped: str) -> float | None:
    """Return the largest difference of the two maps, relative to the largest relevance; None if not finite."""
    make, keywords = PRESETS[preset]
    theirs = attribute(model, x, make(canonizers=[ModelCanonizer(prefer=prefer, clipped=clipped)], **keywords))
    rules = getattr(presets, preset)(**keywords)
    ours = LRP(model, rules, prefer=prefer, clipped=clipped).attribute(x, target=TARGET)
    if not bool(theirs.isfinite().all() and ours.isfinite().all()):
        return None
    return float((ours - theirs).abs().max() / theirs.abs().max())


def table(models: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of the table of parity, then its worst entry."""
    yield "| model | preset | " + " | ".join(f"{prefer}, {clipped}" for prefer, clipped in SETTINGS) + " |"
    yield "| --- " * (2 + len(SETTINGS)) + "|"
    worst = (0.0, "")
    for name in tqdm(models):
        model, x = build(name)
        for preset in PRESETS:
            cells: list[str] = []
            for prefer, clipped in SETTINGS:
                error = difference(model, x, preset, prefer, clipped)
                cells.append("not finite" if error is None else f"{error:.1e}" if error else "0")
                worst = max(worst, (error or 0.0, f"{name}, {preset}, prefer={prefer}, clipped={clipped}"))
            yield f"| {name} | {preset} | " + " | ".join(cells) + " |"
    yield ""
    yield f"Worst: {worst[0]:.1e}" + (f" ({worst[1]})." if worst[0] else ": the maps are the same to the bit.")


def packages() -> str:
    """Return the versions that were measured."""
    names = ("torch", "torchvision", "zennit", "captum")
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)


DIFFERENCES = """## Where they cannot agree

- A subclass of a linear layer whose forward has operations besides the layer's own: in Captum the rule stands for all
  of it, zennit evaluates the layer with the rules on the inner modules. It is named in `Plan.uncovered` where it holds
  modules of its own, or is not linear.
- Captum's own `LRP` has the epsilon rule on max pooling; zennit's composites and the presets have winner-take-all.
  Set `module.rule = rules.WinnerTakesAll()`.
"""


def parity_page(models: tuple[str, ...]) -> str:
    """Return the page on parity."""
    head = [
        "# zennit and Captum, the same map",
        "",
        "`python -m benchmarks.parity` explains class 3 of two random images, 64 x 64, in float64, with random",
        "BatchNorm statistics of both signs, by zennit's composite with `ModelCanonizer` and by the preset of the same",
        "name with `canon_bridge.captum.LRP`. Each figure is the largest difference of the two maps, relative to the",
        "largest relevance; 0 is equality to the bit. Columns: `prefer`, `clipped`.",
        "",
        packages() + ".",
        "",
    ]
    return "\n".join([*head, *table(models), "", DIFFERENCES])


AUDITS = (
    ("without canonization, EpsilonPlus in zennit", lambda model: zennit.composites.EpsilonPlus()),
    (
        "canonical, EpsilonPlus in zennit",
        lambda model: zennit.composites.EpsilonPlus(canonizers=[ModelCanonizer()]),
    ),
    ("canonical, epsilon_plus in Captum", lambda model: LRP(model, presets.epsilon_plus())),
    ("without canonization, epsilon in zennit", lambda model: epsilon_composite(1e-9, [])),
    ("canonical, epsilon in zennit", lambda model: epsilon_composite(1e-9, [ModelCanonizer()])),
)


def audit_page(chart: Path | None) -> str:
    """Return the page on the audit of a densenet121, and draw its chart before and after canonization."""
    model, x = build("densenet121")
    lines = [
        "# Where the relevance of a densenet121 goes",
        "",
        "`print(canon_bridge.audit(model, x, target, rules))`, made by `python -m benchmarks.parity`: torchvision's",
        "densenet121 in float64 with random BatchNorm statistics of both signs, two random images, class 3. Columns of",
        "the tables are per cent of f(x). The shift of a BatchNorm counts as a bias; without",
        "canonization that relevance is handed on to the input, and counts as lost.",
        "",
        packages() + ".",
    ]
    for number, (title, make) in enumerate(AUDITS):
        report = audit(model, x, TARGET, make(model))
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", "```text", str(report), "```"]
        if chart is not None and number < 2:
            path = chart.with_stem(f"{chart.stem}_{('before', 'after')[number]}")
            report.bars(12).savefig(path, dpi=110)
            lines += ["", f"![What became of the score, and where: {title}]({path.name})"]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print, and write the pages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--markdown", type=Path, help="where to write the page on parity")
    parser.add_argument("--audit", type=Path, help="where to write the page on the audit")
    parser.add_argument("--chart", type=Path, help="where to draw the audit: NAME_before.png and NAME_after.png")
    options = parser.parse_args()
    for path, make in (
        (options.markdown, lambda: parity_page(tuple(options.models))),
        (options.audit, lambda: audit_page(options.chart)),
    ):
        text = make()
        print(text)
        if path is not None:
            write_whole(path, text)


if __name__ == "__main__":
    main()
