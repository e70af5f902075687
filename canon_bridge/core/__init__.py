"""The backend-agnostic core: torch only, no attribution framework.

Its parts:

- ``undo``: writes to a model that can be taken back;
- ``registry``, ``affine``, ``layers``, ``norms``, ``activations``: tables of module types; what linear layers,
  BatchNorms, activations and pools compute, and how they take an affine map in;
- ``modules``: the modules of our own;
- ``channels``: where the channels of a tensor lie, and which operations keep them together;
- ``tracing``: the data flow of a model, and new forwards for its containers;
- ``planning``: which BatchNorm is merged into what;
- ``merge``, ``carry_out``, ``precision``, ``canonization`` and ``canonize``: carrying out the plan and
  taking it back.
"""
