"""Named ways into object stores: endpoint, region and where the credentials are. Owns the file of profiles and its words.

SYNCBN_STORAGE_PROFILES names a TOML file, on the controller and on every node:

    [team]
    endpoint = "https://minio.example.org"    # empty: the provider's own
    region = "eu-central-1"
    access_key_env = "TEAM_ACCESS_KEY"        # names of environment variables, never the secrets themselves
    secret_key_env = "TEAM_SECRET_KEY"
    data = ["s3://lake/photos"]               # what jobs may read as their data

and a storage names a profile: `s3://bucket/prefix?profile=team`. Without one, and without the names of variables in it, the provider's own
chain is asked: AWS_* variables, shared files, the instance's role. A secret is in no argument, log, database or assignment: every process
reads its own environment.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.settings import read_secret, read_settings


class StorageConfigError(ValueError):
    """A storage is asked for that this machine cannot reach as it is set up. The operator's to mend; trying again does not help."""


class Profile(BaseModel):
    """One way into an object store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = ""
    region: str = ""
    anonymous: bool = False
    ca_file: str = ""
    """PEM file with the authority of an endpoint of one's own."""
    access_key_env: str = ""
    secret_key_env: str = ""
    session_token_env: str = ""
    data: tuple[str, ...] = ()
    """What jobs may read by this way as their data, like `s3://bucket/photos`. Empty: nothing, since checkpoints may lie behind it."""


def find_profile(name: str) -> Profile:
    """Return a profile; the empty name is the one that says nothing.

    Raises:
        StorageConfigError: there is no such profile, or its file cannot be read.
    """
    if not name:
        return Profile()
    path = read_settings().storage_profiles
    if not path:
        raise StorageConfigError(f"storage profile {name!r} is not known: SYNCBN_STORAGE_PROFILES is not set here; set it to a TOML file")
    try:
        table = tomllib.loads(Path(path).read_text())
        return Profile.model_validate(table[name])
    except KeyError as error:
        known = ", ".join(table) or "none"
        raise StorageConfigError(f"storage profile {name!r} is not in {path}; expected one of {known}; add it there") from error
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        # pydantic would quote the value, and somebody may have written a secret where a name belongs.
        what = (
            "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            if isinstance(error, ValidationError)
            else error
        )
        raise StorageConfigError(f"storage profile {name!r} in {path} cannot be used: {what}; mend the file") from error


def secret_of(variable: str, name: str) -> str | None:
    """Return what an environment variable of a profile holds, None where the profile names none.

    Raises:
        StorageConfigError: the variable is not set.
    """
    if not variable:
        return None
    found = read_secret(variable)
    if not found:
        raise StorageConfigError(f"storage profile {name!r} takes {variable} from the environment, and it is not set here; set it")
    return found
