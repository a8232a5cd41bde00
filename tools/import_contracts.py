"""Contracts for ``lint-imports``: a room's private modules are its own, and files import each other in no circle."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class PrivateModules(Contract):
    """A module whose name begins with an underscore is imported only within the package that it is in."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """All imports that break it."""
        found = sorted(
            (importer, imported)
            for importer in _own(graph)
            for imported in graph.find_modules_directly_imported_by(importer) & _own(graph)
            if (owner := _owner(imported)) is not None and importer != owner and not importer.startswith(f"{owner}.")
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each."""
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported}: export the name in {_owner(imported)}")


class NoCircles(Contract):
    """No more than ``largest`` files import each other in a circle; a package's own ``__init__`` does not count."""

    largest = fields.IntegerField(required=False, default=2)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """The circles that are larger."""
        files = {module for module in _own(graph) if not graph.find_children(module)}
        edges = {module: graph.find_modules_directly_imported_by(module) & files for module in files}
        found = [sorted(circle) for circle in _components(edges) if len(circle) > self.largest]  # type: ignore[operator]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each."""
        for circle in check.metadata["found"]:
            output.print_error(f"these import each other in a circle: {', '.join(circle)}")


def _own(graph: ImportGraph) -> set[str]:
    """The modules that are not of other packages."""
    return {module for module in graph.modules if not graph.is_module_squashed(module)}


def _owner(module: str) -> str | None:
    """The package that a private module is in; None for a public one."""
    parts = module.split(".")
    private = [place for place, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else None


def _components(edges: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of a graph: modules that reach each other."""
    reached = {module: _reached(module, edges) for module in edges}
    found: list[set[str]] = []
    left = set(edges)
    while left:
        module = left.pop()
        circle = {other for other in reached[module] if module in reached.get(other, ())} | {module}
        left -= circle
        found.append(circle)
    return found


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = edges.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found
