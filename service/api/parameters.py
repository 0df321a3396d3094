"""The parameters that several routes share: ids in paths, cursors, limits. A malformed id is a thing that is not here: 404."""

from typing import Annotated, Final

from fastapi import Path, Query

from service.store.ids import JOB_ID_PATTERN

MAX_SEQ: Final = 2**63 - 1

JobId = Annotated[str, Path(pattern=JOB_ID_PATTERN, description="id of a job")]
Step = Annotated[str, Path(pattern=r"^(latest|best|[0-9]{1,15})$", description="a step, `latest` or `best`")]
FileName = Annotated[str, Path(min_length=1, max_length=128, description="a name that the manifest lists, or manifest.json")]
AfterSeq = Annotated[int, Query(ge=0, le=MAX_SEQ, description="only what is newer than this `seq`")]
BeforeSeq = Annotated[
    int | None, Query(ge=1, le=MAX_SEQ, description="only what is older than this `seq`, and of that the newest; next_cursor is the next `before`")
]
EventLimit = Annotated[int, Query(ge=1, le=1000)]
RankFilter = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="only this rank")]
