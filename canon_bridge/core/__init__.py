"""The backend-agnostic core: torch only, no attribution framework.

Modules here import downward only (``affine``, ``edits``, ``layers`` at the bottom, ``canonize`` at the top).
"""
