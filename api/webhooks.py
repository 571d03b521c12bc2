"""/v1/webhooks"""

from typing import Any, Final

from litestar import Request, delete, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import deliveries, webhooks
from core.deliveries import Delivery, DeliveryDetail, Replay, Replayed
from core.webhooks import NewWebhook, Rotation, Test, Webhook, WebhookPatch

Req = Request[Any, Any, Any]


@post(
    "/v1/webhooks",
    operation_id="webhooks.create",
    opt=shape(body=NewWebhook, answer=Webhook, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a webhook. Its secret is in this answer and nowhere else."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewWebhook)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            made = await webhooks.create(work.conn, caller, new, services.settings)
            kept = webhooks.without_secret(made) if isinstance(made, Webhook) else None
            work.answer(201, made, kept=kept)
    return work.response()


@get("/v1/webhooks", operation_id="webhooks.list", opt=shape(answer=pagination.Listed[Webhook]))
async def page(request: Req) -> Response[bytes]:
    """List webhooks, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "whk")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await webhooks.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/webhooks/{id:str}", operation_id="webhooks.get", opt=shape(answer=Webhook))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a webhook."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await webhooks.get(conn, caller, id))


@patch(
    "/v1/webhooks/{id:str}",
    operation_id="webhooks.edit",
    opt=shape(body=WebhookPatch, answer=Webhook),
)
async def edit(request: Req, id: str) -> Response[bytes]:
    """Change a webhook, or switch it off or on again."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, WebhookPatch)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await webhooks.edit(work.conn, caller, id, change, services.settings)
            work.answer(200, done)
    return work.response()


@delete(
    "/v1/webhooks/{id:str}",
    operation_id="webhooks.remove",
    status_code=200,
    opt=shape(answer=dict[str, bool]),
)
async def remove(request: Req, id: str) -> Response[bytes]:
    """Take a webhook away; what waits for it is not delivered."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            await webhooks.remove(work.conn, caller, id)
            work.answer(200, {"deleted": True})
    return work.response()


@post(
    "/v1/webhooks/{id:str}/rotate-secret",
    operation_id="webhooks.rotate",
    status_code=200,
    opt=shape(body=Rotation, answer=Webhook),
)
async def rotate(request: Req, id: str) -> Response[bytes]:
    """Give a webhook a new secret; for a while the old one signs, too."""
    caller = await auth.secret_caller(request)
    raw, asked = await bodies.received(request, Rotation)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            signer = webhooks.Signer(services.settings.secret)
            done = await webhooks.rotate(work.conn, caller, id, asked, signer)
            work.answer(200, done, kept=webhooks.without_secret(done))
    return work.response()


@post(
    "/v1/webhooks/test",
    operation_id="webhooks.test_all",
    status_code=200,
    opt=shape(body=Test, answer=dict[str, bool]),
)
async def try_all(request: Req) -> Response[bytes]:
    """Send an example of a type to every webhook that is told of it."""
    return await _try_out(request, None)


@post(
    "/v1/webhooks/{id:str}/test",
    operation_id="webhooks.test",
    status_code=200,
    opt=shape(body=Test, answer=dict[str, bool]),
)
async def try_one(request: Req, id: str) -> Response[bytes]:
    """Send an example of a type to a webhook."""
    return await _try_out(request, id)


async def _try_out(request: Req, id: str | None) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    raw, test = await bodies.received(request, Test)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            await webhooks.try_out(work.conn, caller, test, id)
            work.answer(200, {"sent": True})
    return work.response()


@get(
    "/v1/webhooks/{id:str}/deliveries",
    operation_id="webhooks.deliveries.list",
    opt=shape(answer=pagination.Listed[Delivery], query=("status",)),
)
async def sent(request: Req, id: str) -> Response[bytes]:
    """List what was sent to a webhook or waits for it, newest first; `status=dead` failed."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "dlv", "status")
    status: Any = pagination.one_of(asked, "status", "pending", "delivered", "dead")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await deliveries.page(
            conn, caller, id, status=status, after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


@get(
    "/v1/webhooks/{id:str}/deliveries/{delivery:str}",
    operation_id="webhooks.deliveries.get",
    opt=shape(answer=DeliveryDetail),
)
async def sent_one(request: Req, id: str, delivery: str) -> Response[bytes]:
    """Return a delivery: what was sent, and each attempt with its answer and latency."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await deliveries.get(conn, caller, id, delivery))


@post(
    "/v1/webhooks/{id:str}/deliveries/{delivery:str}/replay",
    operation_id="webhooks.deliveries.replay",
    status_code=200,
    opt=shape(answer=Delivery),
)
async def replay(request: Req, id: str, delivery: str) -> Response[bytes]:
    """Send a delivery again."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await deliveries.replay(work.conn, caller, id, delivery))
    return work.response()


@post(
    "/v1/webhooks/{id:str}/replay",
    operation_id="webhooks.replay",
    status_code=200,
    opt=shape(body=Replay, answer=Replayed),
)
async def replay_all(request: Req, id: str) -> Response[bytes]:
    """Send everything again that failed for good, or was delivered, since an instant."""
    caller = await auth.secret_caller(request)
    raw, asked = await bodies.received(request, Replay)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await deliveries.replay_all(work.conn, caller, id, asked))
    return work.response()


ROUTES: Final = [
    create, page, show, edit, remove, rotate, try_all, try_one, sent, sent_one, replay, replay_all,
]  # fmt: skip
