"""Which node of a cluster has a lease, and what is told to it alone."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.exceptions import ClusterDownError, ConnectionError

from core.endings import end
from core.hot import leases, nodes
from core.hot.leases import LeaseFacts
from core.hot.nodes import Cluster, connect, node_of, nodes_of
from core.hot.rust_cluster import RustCluster
from tests.masters import Masters, masters, slot_of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster() -> Iterator[Masters]:
    with masters() as made:
        yield made


@pytest.fixture
async def client(cluster: Masters) -> AsyncIterator[Cluster]:
    made = connect(cluster.url)
    assert isinstance(made, Cluster)
    yield made
    await made.aclose()


async def armed(client: Cluster, count: int) -> list[str]:
    made = [str(uuid.uuid4()) for _ in range(count)]
    for lease in made:
        assert await leases.arm(client, LeaseFacts(lease_id=lease, size=10))
    return made


async def test_every_lease_is_on_the_master_of_its_slot_and_all_are_found(
    client: Cluster, cluster: Masters
) -> None:
    made = await armed(client, 12)
    for lease in made:
        master = cluster.of(lease)
        assert master.ask("EXISTS", f"vf:{{{lease}}}:s") == 1
        run_id, state = await leases.read_state_of(client, lease)
        assert run_id == master.ask("INFO", "server")["run_id"]
        assert state is not None and state.issued == 0
    assert len(await nodes_of(client)) == 3
    held = [one.lease_id async for one in leases.held(client)]
    assert sorted(held) == sorted(made)


async def test_a_slot_that_moved_is_followed_by_the_next_command(
    client: Cluster, cluster: Masters
) -> None:
    (lease,) = await armed(client, 1)
    was = await node_of(client, lease)
    client._looked_at = float("inf")  # it learns of the move by MOVED alone
    goal = cluster.move(lease)
    state = await leases.grow(client, lease, 25)
    assert state is not None and state.size == 25
    assert await node_of(client, lease) is not was
    told, entries = await leases.read_raw(client, lease, "0-0", 10)
    assert (told, entries) == (goal.ask("INFO", "server")["run_id"], [])


async def test_a_batcher_that_is_needed_again_while_others_are_left_stays(
    client: Cluster, cluster: Masters
) -> None:
    lease_of = {cluster.of(lease).address: lease for lease in await armed(client, 24)}
    assert len(lease_of) == 3
    backend = RustCluster(cluster.url)
    try:
        await backend._nodes.look()
        await end(backend._task)
        for lease in lease_of.values():
            backend.close_slot(backend.open_lease(lease, "unknown"))
        leaving = asyncio.create_task(backend._leave_unused())
        await asyncio.sleep(0)
        assert len(backend._backends) == 2, "one is being closed"
        needed = list(backend._backends)[-1]
        slot = backend.open_lease(lease_of[needed], "unknown")
        await leaving
        assert list(backend._backends) == [needed]
        assert backend.status().slots[slot].target == lease_of[needed]
    finally:
        await backend.aclose()


def test_a_node_with_an_older_map_leads_nobody_back() -> None:
    client = Cluster("redis+cluster://one:1,two:2")
    lease = str(uuid.uuid4())
    whole = [["0", "16383"]]
    one = {"node_id": "b", "epoch": "3", "flags": "myself,master", "slots": whole}
    two = {"node_id": "a", "epoch": "4", "flags": "myself,master"}
    old = {"10.0.0.1:1": one}
    new = {":2": two | {"slots": [[str(slot_of(lease))]]}}
    client._learn("one:1", old)
    assert client.address_of(lease) == "10.0.0.1:1"
    client._learn("two:2", new)
    assert client.address_of(lease) == "two:2"
    client._learn("three:3", old)
    assert client.address_of(lease) == "two:2"


def test_a_node_that_came_back_elsewhere_is_where_the_others_see_it() -> None:
    client = Cluster("redis+cluster://one:1,two:2")
    lease = str(uuid.uuid4())
    node = {"node_id": "a", "epoch": "3", "slots": [["0", "16383"]]}
    itself, by_others = node | {"flags": "myself,master"}, node | {"flags": "master"}
    client._learn("two:2", {"10.0.0.9:1": by_others})
    client._learn("two:2", {"10.0.0.10:1": by_others})
    assert client.address_of(lease) == "10.0.0.10:1"
    client._learn("one:1", {"10.0.0.9:1": itself})
    client._learn("two:2", {"10.0.0.10:1": by_others})
    assert client.address_of(lease) == "10.0.0.10:1"


async def test_a_cluster_that_lacks_a_master_is_never_taken_for_a_whole_one() -> None:
    client = Cluster("redis+cluster://one:1")
    half = {"one:1": {"node_id": "a", "epoch": "1", "flags": "master", "slots": [["0", "8191"]]}}
    client._learn("one:1", half)
    client._looked_at = float("inf")
    with pytest.raises(ClusterDownError, match="8192 slots"):
        await nodes_of(client)


@pytest.mark.parametrize("text", ["redis+cluster://", "redis+cluster://host", "redis+cluster:///0"])
def test_an_address_of_a_cluster_names_nodes_and_ports(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        connect(text)


async def test_a_connection_that_was_reset_is_lost_and_no_bug() -> None:
    class Reset:
        async def send_packed_command(self, *args: object) -> None:
            raise RuntimeError("unable to perform operation; the handler is closed")

    class Honest(nodes._ResetIsLoss, Reset):
        pass

    with pytest.raises(ConnectionError, match="handler is closed"):
        await Honest().send_packed_command(b"PING")
