"""The versions that are supported, each in a fresh environment: `nox -l` lists them, `nox -s 'tests(oldest)'` runs one.

Without arguments a session runs all tests that are not marked slow; arguments after `--` go to pytest. An interpreter
that a machine lacks is skipped, with a word.
"""

import nox

NEWEST = ("torch==2.14.1", "torchvision==0.29.1")
OLDEST = ("torch==2.6.0", "torchvision==0.21.0", "zennit==0.5.1")
# Captum before 0.9 keeps numpy below 2, which newer pyarrow refuses; its metadata do not say so.
BEFORE_NUMPY_2 = ("pyarrow==21.0.0",)
# By the name of a session: the Python, and what differs from the newest of everything.
MATRIX = {
    "newest": ("3.11", NEWEST),
    "oldest": ("3.11", (*OLDEST, "captum==0.7.0", *BEFORE_NUMPY_2)),
    "oldest, captum 0.8": ("3.11", (*OLDEST, "captum==0.8.0", *BEFORE_NUMPY_2)),
    "torch 2.9": ("3.12", ("torch==2.9.1", "torchvision==0.24.1", "zennit==1.0.0")),
    "captum 0.7": ("3.11", (*NEWEST, "captum==0.7.0", *BEFORE_NUMPY_2)),
    "captum 0.8": ("3.11", (*NEWEST, "captum==0.8.0", *BEFORE_NUMPY_2)),
    "captum 0.9": ("3.11", (*NEWEST, "captum==0.9.0")),
    "zennit 0.5.1": ("3.11", (*NEWEST, "zennit==0.5.1")),
    "zennit 1.0": ("3.12", (*NEWEST, "zennit==1.0.0")),  # it asks for Python 3.11.11 or newer
    "python 3.12": ("3.12", NEWEST),
    "python 3.13": ("3.13", (*NEWEST, "zennit==1.0.0")),
    "torch 2.15": ("3.14", ("torch==2.15.0", "torchvision==0.29.2", "zennit==1.0.0")),
    "python 3.14": ("3.14", (*NEWEST, "zennit==1.0.0")),
}


@nox.session
@nox.parametrize(("python", "versions"), list(MATRIX.values()), ids=list(MATRIX))
def tests(session: nox.Session, versions: tuple[str, ...]) -> None:
    """Run the tests on one set of versions."""
    session.install(*versions, "-e", ".[test]")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ("-n", "2", "-m", "not slow")))
