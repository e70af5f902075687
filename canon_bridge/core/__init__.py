"""The backend-agnostic core: torch only, no attribution framework.

Its parts:

- ``undo``: writes to a model that can be taken back;
- ``registry``, ``layers``, ``norms``: tables of module types; what linear layers and BatchNorms compute;
- ``modules``: activations and pools, and the modules of our own;
- ``channels``: where the channels of a tensor lie, and which operations keep them together;
- ``tracing``: the data flow of a model, and new forwards for its containers;
- ``planning``: which BatchNorm is merged into what;
- ``merge``, ``carry_out``, ``precision``, ``canonization`` and ``canonize``: carrying out the plan and
   taking it back.
"""
