"""A terminal that ends its side while the hub still has bytes for it, which something on the way takes."""

import logging
from pathlib import Path

import pytest

from tests.harness import SlowProxy, raw_terminal, running_hub, until

MORE_THAN_ANY_BUFFER_BYTES = 32 * 1024 * 1024


async def test_a_socket_that_ends_with_bytes_still_to_send_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SlowProxy() as proxy, running_hub(tmp_path, names=(proxy.name,)) as hub:
        proxy.target_port = hub.server.port
        await hub.add_account("ada")
        async with raw_terminal(proxy) as terminal:
            await terminal.enrol("ada", name="PC")
            socket = hub.socket_of(terminal.terminal)
            (connection,) = proxy.open_connections()
            connection.down.freeze()
            transport = socket._connection.transport
            transport.write(bytes(MORE_THAN_ANY_BUFFER_BYTES))  # what a transfer leaves there on a slow link
            terminal.socket.transport.close()
            await until(transport.is_closing)
            assert transport.get_write_buffer_size() > 0
            connection.down.swallows = True
            connection.down.thaw()
            await until(lambda: not hub.server._services.sockets)
            assert hub.hub.presence.socket_of(terminal.terminal) is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or "failed" in record.message]
