"""The pytest plugin of sagaz: its markers, as objects to import instead of `pytest.mark.<name>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pytest

    def replay_from(
        id_or_path: str,
        step: str | None = None,
        override: Mapping[str, Any] | None = None,
        freeze: bool = True,
    ) -> pytest.MarkDecorator:
        """Give the test's `recording` and `saga_case` this recorded saga, from this step on."""

    def force_failure(
        step: str, at: str = "before", exc: BaseException | type[BaseException] | None = None
    ) -> pytest.MarkDecorator:
        """Run the test's sagas under this fault; `at` is a kind. Stacked, all of them strike."""

    def saga_matrix(
        saga: Any, context: Mapping[str, Any] | None, kinds: str | Iterable[str] | None = None
    ) -> pytest.MarkDecorator:
        """Run the test once for each single-fault plan of the saga, given by `saga_case`."""


__all__ = ["force_failure", "replay_from", "saga_matrix"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    mark: pytest.MarkDecorator = getattr(pytest.mark, name)
    return _taking_a_saga(mark) if name == "saga_matrix" else mark


def _taking_a_saga(mark: pytest.MarkDecorator) -> Any:
    """Return the mark, to be called with a saga: pytest's own takes a class or function that is alone for the test."""

    def saga_matrix(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and getattr(args[0], "__name__", "").lower().startswith("test"):
            return mark(*args, **kwargs)  # it was not called at all
        return mark.with_args(*args, **kwargs)

    return saga_matrix


def __dir__() -> list[str]:
    return __all__
