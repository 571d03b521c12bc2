"""POST /v1/qualifications, and POST /v1/validations of many codes."""

from typing import Any, Final

from litestar import Request, post
from litestar.response import Response

from api import answers, auth, bodies
from api.docs import shape
from api.lifespan import Services
from core import attempts, qualifications, validations
from core.qualifications import NewQualification, Qualification
from core.validations import ManyQuestions, Verdicts

Req = Request[Any, Any, Any]


@post(
    "/v1/qualifications",
    operation_id="qualifications.create",
    status_code=200,
    opt=shape(body=NewQualification, answer=Qualification),
)
async def create(request: Req) -> Response[bytes]:
    """Say what a customer can get for a cart, the best deal first, with reasons for the rest."""
    caller = await auth.secret_caller(request)
    _, asked = await bodies.received(request, NewQualification)
    services: Services = request.app.state.services
    reads_only = asked.customer is None
    async with services.database.transaction(caller.project_id, reads_only=reads_only) as conn:
        return answers.ok(await qualifications.qualify(conn, caller, asked))


@post(
    "/v1/validations",
    operation_id="validations.create",
    status_code=200,
    opt=shape(body=ManyQuestions, answer=Verdicts),
)
async def validate(request: Req) -> Response[bytes]:
    """Say of up to 500 codes whether each would work for this order; consumes nothing."""
    caller = await auth.secret_caller(request)
    _, asked = await bodies.received(request, ManyQuestions)
    services: Services = request.app.state.services
    reads_only = asked.customer is None
    async with services.database.transaction(caller.project_id, reads_only=reads_only) as conn:
        await validations.meet(conn, caller, asked)
        verdicts = await validations.validate_many(conn, caller, asked)
    for one in verdicts.data:
        reason = attempts.VALID if one.valid else one.code
        services.attempts.count(caller.project_id, "validate", reason)
    return answers.ok(verdicts)


ROUTES: Final = [create, validate]
