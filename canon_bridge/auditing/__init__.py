"""Where the relevance went: the account of one backward pass, module by module, with either framework's rules.

Imports torch, the core, and, when it is asked for, the adapter of the framework that the rules are from.
"""
