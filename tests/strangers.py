"""Beginning of the code of a process in which this package cannot be imported, although it is installed."""


def without(*packages: str) -> str:
    """Return code after which the import of `packages` fails as if they were not installed."""
    return f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(name + " is not installed here", name=name)

sys.meta_path.insert(0, Absent())
"""
