"""The settings of the controller and of its clients. The only file of `service` that reads the environment; read once, at start."""

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.contract.bundle import MAX_UNPACKED_BYTES
from worker.storage.opening import check_address, local_path

DEFAULT_PORT: Final = 8470
_SECRET: Final = frozenset({"SYNCBN_TOKEN", "SYNCBN_DATABASE_URL", "PGPASSWORD"})


def default_home() -> Path:
    """Return the state directory of this user on this system."""
    return platformdirs.user_state_path("syncbn")


class Home:
    """The names in the state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = path / "token"
        """The first token in plain text, mode 0600."""
        self.controller = path / "controller.json"
        """Where the running controller is: `{"url": ..., "pid": ...}`. Written by `serve`, removed when it ends well."""
        self.database = path / "syncbn.db"
        self.storage = path / "storage"
        self.policy = path / "policy.toml"


class Settings(BaseSettings):
    """What a controller is told. Each field is `SYNCBN_` and its name in capitals, and a flag of `serve`."""

    model_config = SettingsConfigDict(env_prefix="SYNCBN_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=default_home, description="state directory")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    database_url: str = Field("", repr=False, description="sqlite:///path or postgresql://user@host/db; empty: a file in the home")
    storage: str = Field("", description="file:///path or a path, the same on every node; s3:// or gs://; empty: a directory in the home")
    ray_address: str = Field("", description="host:port of a running cluster; empty: an embedded one")
    policy: str = Field("", description="TOML file of quotas and preemption; empty: policy.toml in the home")
    allowed_hosts: tuple[str, ...] = Field((), description='host names that requests may name, as JSON: ["train.example.org"]')
    heartbeat_s: Annotated[float, Field(gt=0, le=300)] = Field(15.0, description="longest silence of a stream")
    max_streams: Annotated[int, Field(ge=1, le=100_000)] = Field(256, description="streams open at once")
    max_streams_per_token: Annotated[int, Field(ge=1, le=100_000)] = Field(64, description="streams open at once with one token")
    max_requests_per_s: Annotated[float, Field(gt=0, le=1e6)] = Field(
        200.0, description="requests with one token; more at once after a pause"
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = Field(2**20, description="largest request body, but for code")
    max_code_bytes: Annotated[int, Field(ge=1024, le=MAX_UNPACKED_BYTES)] = Field(16 * 2**20, description="largest upload of code")
    body_timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(60.0, description="longest time for a request body to arrive")
    data_roots: tuple[str, ...] = Field((), description='where data may lie, as JSON: ["/data", "s3://bucket/prefix"]')
    allow_open_ray: bool = Field(
        default=False, description="use a Ray that asks for no token: whoever reaches it runs what they like on it"
    )
    max_log_bytes: Annotated[int, Field(ge=2**20)] = Field(
        256 * 2**20, description="how much of a job's log is kept; the oldest lines go first"
    )
    log_format: Literal["console", "json"] = Field("console", description="how the controller logs to stderr")

    @field_validator("home")
    @classmethod
    def _is_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("storage")
    @classmethod
    def _is_an_address(cls, storage: str) -> str:
        return check_address(storage)

    @field_validator("data_roots")
    @classmethod
    def _are_absolute(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not root.startswith("/") and "://" not in root:
                raise ValueError(f"data root {root!r} is neither an absolute path nor a URI: write it like /data or s3://bucket/prefix")
        return tuple(root.removeprefix("file://") for root in roots)

    @property
    def files(self) -> Home:
        """The names in the state directory."""
        return Home(self.home)

    @property
    def storage_url(self) -> str:
        """The address of the storage, the default filled in."""
        path = self.storage_path
        return self.storage if path is None else str(path)

    @property
    def storage_path(self) -> Path | None:
        """The storage as an absolute directory name; None where it is an object store."""
        return local_path(self.storage) if self.storage else self.files.storage.absolute()

    @property
    def policy_path(self) -> Path:
        """The operator's policy file, which need not be there."""
        return Path(self.policy).expanduser().absolute() if self.policy else self.files.policy

    @property
    def store_url(self) -> str:
        """The database's URL, the default filled in."""
        return self.database_url or f"sqlite:///{self.files.database.absolute()}"


class ClientSettings(BaseSettings):
    """Where the service is and how to show who one is. What is empty is looked up in the home."""

    model_config = SettingsConfigDict(env_prefix="SYNCBN_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=default_home)
    url: str = ""
    token: SecretStr = SecretStr("")

    @property
    def files(self) -> Home:
        """The names in the state directory."""
        return Home(self.home)


def inherited_environment() -> dict[str, str]:
    """Return the environment that a child process is to start from: without the secrets of this one, which a job's code could read."""
    return {name: value for name, value in os.environ.items() if name not in _SECRET}


def bare_environment() -> dict[str, str]:
    """Return the environment of a child process that meets what strangers send: nothing but what Python needs to start."""
    needed = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in needed if name in os.environ} | {"OMP_NUM_THREADS": "1"}


def export_ray_token(path: str) -> None:
    """Have this process show the token in the file at `path` to Ray, which takes it from nowhere but the environment."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=path)


def export_ray_patience() -> None:
    """Keep Ray from ending this process when its head has been away for a minute, which is what it does with a driver."""
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(10 * 365 * 86_400))
