"""A job as a dictionary whose fields type checkers and editors know, each with its type. At run time a dictionary.

Generated from the OpenAPI document by `make format`: change the shapes in service/api.
"""

from typing import TYPE_CHECKING, Any, Literal, overload

from service.client.answers import Attempt, Progress, State, Transition


class JobFields(dict[str, Any]):
    """What a job is read by: `job["state"]` is a state, `job["progress"]["step"]` a number."""

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, key: Literal["id", "project", "name", "reason", "message", "created_at"], /) -> str: ...

        @overload
        def __getitem__(self, key: Literal["state"], /) -> State: ...

        @overload
        def __getitem__(self, key: Literal["labels"], /) -> dict[str, str]: ...

        @overload
        def __getitem__(self, key: Literal["priority", "world_size"], /) -> int: ...

        @overload
        def __getitem__(self, key: Literal["started_at", "finished_at"], /) -> str | None: ...

        @overload
        def __getitem__(self, key: Literal["progress"], /) -> Progress: ...

        @overload
        def __getitem__(self, key: Literal["metrics"], /) -> dict[str, float]: ...

        @overload
        def __getitem__(self, key: Literal["transitions"], /) -> list[Transition]: ...

        @overload
        def __getitem__(self, key: Literal["attempts"], /) -> list[Attempt]: ...

        @overload
        def __getitem__(self, key: Literal["spec"], /) -> dict[str, Any]: ...

        @overload
        def __getitem__(self, key: str, /) -> Any: ...

        def __getitem__(self, key: str, /) -> Any: ...
