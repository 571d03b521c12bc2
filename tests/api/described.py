"""The addresses of the API with a body that each of them takes, as /openapi.json has them."""

import re
from typing import Any, NamedTuple

# What a schema does not say: of these one is required, or the values have a meaning.
EXAMPLES: dict[str, Any] = {
    "vouchers.create": {"discount_value": 5},
    "vouchers.bulk": {"count": 1, "discount_value": 5},
    "vouchers.rollback": {"redemption_id": "rdm_01M8476S71E0JTFRWBNC4NTN7G"},
    "flash_sales.create": {"name": "f", "code": "SOME", "discount_value": 5, "stock": 1},
    "segments.create": {"name": "s", "customer_ids": ["x"]},
    "webhooks.create": {"url": "https://hooks.example/in"},
    "gift_cards.create": {"amount": 5},
    "api_keys.create": {"type": "PUBLISHABLE"},
    "billing.change_plan": {"plan": "enterprise"},
}


KINDS = {("gift-cards", "batch"): "batches", ("projects", "user"): "users"}


class Operation(NamedTuple):
    """One method of one address."""

    method: str
    path: str
    id: str
    asker: str
    """`key` of a program or session of a person, `program`, `person`, or `anybody`."""
    body: Any
    texts: tuple[str, ...]
    """Members of the body that are texts."""
    query: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def noun(self) -> str:
        return self.path.split("/")[2]

    def kind_of(self, name: str) -> str:
        """Return the noun of what a name in the address stands for."""
        return KINDS.get((self.noun, name), self.path.partition(f"/{{{name}}}")[0].split("/")[-1])

    def at(self, **values: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "x"), self.path)


def operations(document: dict[str, Any]) -> list[Operation]:
    """Return every operation that a document describes."""
    schemas = document["components"]["schemas"]
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = resolved(content.get("application/json", {}).get("schema", {}), schemas)
            body = EXAMPLES.get(operation["operationId"], example(schema, schemas))
            texts = [n for n, one in schema.get("properties", {}).items() if is_text(one, schemas)]
            asked = [one["name"] for one in operation["parameters"] if one["in"] == "query"]
            found.append(
                Operation(
                    method.upper(), path, operation["operationId"], asker_of(operation),
                    body if content else None, tuple(texts), tuple(asked),
                )
            )  # fmt: skip
    return found


def asker_of(operation: dict[str, Any]) -> str:
    if "security" not in operation:
        return "key"
    [only] = operation["security"] or [{"anybody": []}]
    return {"key": "program", "session": "person"}.get(*only, "anybody")


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def is_text(schema: dict[str, Any], schemas: dict[str, Any]) -> bool:
    schema = resolved(schema, schemas)
    one_of = schema.get("anyOf", [])
    return schema.get("type") == "string" or any(is_text(one, schemas) for one in one_of)


def example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """Return the smallest value that fits a schema: what is required, and nothing else."""
    schema = resolved(schema, schemas)
    if "enum" in schema:
        return schema["enum"][0]
    for options in (schema.get("anyOf"), schema.get("oneOf")):
        if options:
            return example(options[0], schemas)
    match schema.get("type"):
        case "object":
            members = schema.get("properties", {})
            return {name: example(members[name], schemas) for name in schema.get("required", [])}
        case "array":
            return [example(schema["items"], schemas)] * schema.get("minItems", 0)
        case "integer" | "number":
            return max(schema.get("minimum", 1), 1)
        case "boolean":
            return True
        case "string" if schema.get("format") == "date-time":
            return "2030-01-31T12:00:00Z"
        case "string":
            return "a" * max(schema.get("minLength", 1), 1)
    return {}
