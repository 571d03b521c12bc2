"""/v1/auth/password, /v1/auth/password-reset and /v1/auth/second-factor"""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from litestar import Request, delete, post
from litestar.response import Response

from api import answers, auth, bodies, metrics
from api.docs import shape
from api.lifespan import Services
from core import confirmations, credentials
from core.confirmations import Confirmation
from core.credentials import FirstCode, ForgottenPassword, NewPassword, PasswordChange, Proof
from core.second_factors import RecoveryCodes, SecondFactor

Req = Request[Any, Any, Any]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Something was done, or would have been."""

    status: str


@post(
    "/v1/auth/password-reset", operation_id="auth.forget_password", status_code=200,
    opt=shape(body=ForgottenPassword, answer=Done, asker="anybody"),
)  # fmt: skip
async def forget(request: Req) -> Response[bytes]:
    """Send a link for a new password to who has an e-mail; the answer is the same to nobody."""
    auth.check_same_site(request)
    _, given = await bodies.received(request, ForgottenPassword)
    services: Services = request.app.state.services
    mail = await credentials.forget(
        services.database, services.settings, given, auth.visitor_of(request)
    )
    if mail is not None:
        services.mailer.send(mail)
    return answers.ok(Done(status="sent"))


@post(
    "/v1/auth/password-reset/confirm", operation_id="auth.reset_password", status_code=200,
    opt=shape(body=NewPassword, answer=Done, asker="anybody"),
)  # fmt: skip
async def reset(request: Req) -> Response[bytes]:
    """Set a new password by what the mail holds, once; every session ends."""
    auth.check_same_site(request)
    _, given = await bodies.received(request, NewPassword)
    services: Services = request.app.state.services
    await credentials.reset(services.database, services.settings, given)
    metrics.count("person.password_reset")
    return answers.ok(Done(status="changed"))


@post(
    "/v1/auth/email-confirmation", operation_id="auth.ask_for_confirmation", status_code=200,
    opt=shape(answer=Done, asker="person"),
)  # fmt: skip
async def ask(request: Req) -> Response[bytes]:
    """Send the mail that asks whether an e-mail is the person's once more."""
    session = await auth.session_of(request)
    await bodies.received_nothing(request)
    services: Services = request.app.state.services
    mail = await confirmations.again(
        services.database, services.settings, session, datetime.now(UTC)
    )
    if mail is not None:
        services.mailer.send(mail)
    return answers.ok(Done(status="confirmed" if mail is None else "sent"))


@post(
    "/v1/auth/email-confirmation/confirm", operation_id="auth.confirm_email", status_code=200,
    opt=shape(body=Confirmation, answer=Done, asker="anybody"),
)  # fmt: skip
async def confirm_email(request: Req) -> Response[bytes]:
    """Confirm an e-mail by what the mail holds."""
    auth.check_same_site(request)
    _, given = await bodies.received(request, Confirmation)
    services: Services = request.app.state.services
    await confirmations.confirm(services.database, services.settings, given, datetime.now(UTC))
    metrics.count("person.email_confirmed")
    return answers.ok(Done(status="confirmed"))


@post(
    "/v1/auth/password", operation_id="auth.change_password", status_code=200,
    opt=shape(body=PasswordChange, answer=Done, asker="person"),
)  # fmt: skip
async def change(request: Req) -> Response[bytes]:
    """Set another password; the other sessions end."""
    session = await auth.session_of(request)
    _, given = await bodies.received(request, PasswordChange)
    services: Services = request.app.state.services
    await credentials.change_password(services.database, session, given, auth.visitor_of(request))
    return answers.ok(Done(status="changed"))


@post(
    "/v1/auth/second-factor", operation_id="auth.begin_second_factor", status_code=200,
    opt=shape(body=Proof, answer=SecondFactor, asker="person"),
)  # fmt: skip
async def begin(request: Req) -> Response[bytes]:
    """Return what an app is told; it counts once its first code was confirmed."""
    session = await auth.session_of(request)
    _, given = await bodies.received(request, Proof)
    services: Services = request.app.state.services
    made = await credentials.begin_second_factor(
        services.database, services.settings, session, given, auth.visitor_of(request)
    )
    return answers.ok(made)


@post(
    "/v1/auth/second-factor/confirm", operation_id="auth.confirm_second_factor", status_code=200,
    opt=shape(body=FirstCode, answer=RecoveryCodes, asker="person"),
)  # fmt: skip
async def confirm(request: Req) -> Response[bytes]:
    """Make the second factor count; the recovery codes are in this answer and nowhere else."""
    session = await auth.session_of(request)
    _, given = await bodies.received(request, FirstCode)
    services: Services = request.app.state.services
    codes = await credentials.confirm_second_factor(
        services.database, services.settings, session, given, auth.visitor_of(request)
    )
    metrics.count("person.second_factor")
    return answers.ok(codes)


@delete(
    "/v1/auth/second-factor", operation_id="auth.remove_second_factor", status_code=200,
    opt=shape(body=Proof, answer=Done, asker="person"),
)  # fmt: skip
async def remove(request: Req) -> Response[bytes]:
    """Take the second factor away."""
    session = await auth.session_of(request)
    _, given = await bodies.received(request, Proof)
    services: Services = request.app.state.services
    await credentials.remove_second_factor(
        services.database, session, given, auth.visitor_of(request)
    )
    return answers.ok(Done(status="removed"))


ROUTES: Final = [forget, reset, ask, confirm_email, change, begin, confirm, remove]
