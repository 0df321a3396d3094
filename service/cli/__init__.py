"""The `syncbn` command: one file per group of commands, all of them callers of service.client but `serve`, `down`, `demo` and `doctor`."""
