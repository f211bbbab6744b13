"""How much the resolver's tests cover: rows of their tables, and how many examples each run of its properties tries.

`python -m tests.hub.resolver_figures` prints the line that `make test-formats` shows.
"""

from collections.abc import Sized
from types import ModuleType
from typing import NamedTuple

from tests.hub import test_matching, test_matching_examples, test_resolver, test_versions, test_wheeltags

MODULES: tuple[ModuleType, ...] = (test_matching, test_matching_examples, test_resolver, test_versions, test_wheeltags)


class Figures(NamedTuple):
    """Rows of tables (one assertion on the resolver each, or more), properties, and examples of them in one run."""

    cases: int
    properties: int
    examples: int


def figures() -> Figures:
    """Count what the modules hold."""
    tables: tuple[Sized, ...] = (
        test_matching.LIMITS,
        test_matching.ALL_PAIRS,
        test_matching_examples.PATENT,
        test_matching_examples.VENDORS,
        test_wheeltags.TABLE,
        test_versions.FLAT,
        test_versions.KIND_ROWS,
        test_versions.RPM_PAIRS,
    )
    properties = [
        function
        for module in MODULES
        for name, function in vars(module).items()
        if name.startswith("test_") and getattr(function, "is_hypothesis_test", False)
    ]
    examples = sum(one._hypothesis_internal_use_settings.max_examples for one in properties)
    return Figures(sum(len(table) for table in tables), len(properties), examples)


if __name__ == "__main__":
    cases, properties, examples = figures()
    print(f"Resolver: {cases} cases in the tables, {properties} properties with {examples} examples in one run")  # noqa: T201
