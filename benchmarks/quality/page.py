"""The page."""


def markdown(results, plot):
    return ""
