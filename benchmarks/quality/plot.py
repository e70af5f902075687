"""The plot."""


def draw(results, path):
    pass
