"""What is found at the address of a Ray before anything connects to it: whether somebody listens, and whether anybody may come in."""

import socket

TIMEOUT_S = 5.0


def no_listener(address: str) -> str | None:
    """Return what to say where nothing listens at host:port: Ray itself would try for minutes before it says so. None where all is well."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return (
            f"no Ray at {address!r} ({error}); expected the host:port that `ray start --head` printed; start Ray there, "
            "or leave SYNCBN_RAY_ADDRESS empty for an embedded one"
        )
    return None


def open_door(address: str) -> str | None:
    """Return what to say where Ray answers without a token: whoever reaches it runs what they like on it. None where all is well."""
    import grpc

    # The empty request; no stub is needed, and no module of Ray, which would read the token when it is imported.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=TIMEOUT_S)
        except grpc.RpcError:
            # It asks for the token, or speaks TLS, or is no Ray: whichever it is, connecting to it comes next and says so.
            return None
    return (
        f"the Ray at {address} answers without a token; expected one with RAY_AUTH_MODE=token, because whoever reaches it otherwise runs "
        "what they like on its nodes; start it so, or set SYNCBN_ALLOW_OPEN_RAY=true where its network is closed"
    )
