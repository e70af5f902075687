"""Measurements over many models; see ``coverage``."""
