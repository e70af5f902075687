"""The backend-agnostic core: torch only, no attribution framework.

Its parts, each of which imports only from those before it:

1. ``undo``: writes to a model that can be taken back;
2. ``modules``: what a linear layer, a BatchNorm, an activation or a pool is, and the modules of our own;
3. ``channels``: where the channels of a tensor lie, and which operations keep them together;
4. ``tracing``: the data flow of a model, and new forwards for its containers;
5. ``planning``: which BatchNorm is merged into what;
6. ``merge``, ``carry_out``, ``precision``, ``canonization`` and ``canonize``: carrying out the plan and
   taking it back.
"""
