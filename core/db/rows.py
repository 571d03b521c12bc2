"""Rows into structs: by column name, converted and checked by position.

What a column holds must be what the field says. A sum that comes as numeric, or a NULL in a field
that cannot be None, fails here and not in a client.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

T = TypeVar("T")

# One per pair of type and column names, so about one per statement of the product.
_SHAPES_MAX: Final = 2_000
_shapes: dict[tuple[Any, tuple[str, ...]], Callable[[list[Any]], list[Any]]] = {}


def convert_rows(rows: list[Any], type_: type[T]) -> list[T]:
    """Return one `type_` a row: a struct, `dict`, or the type of a single column.

    Raises: TypeError when the columns and the fields do not fit, msgspec.ValidationError when a
    value does not: both are bugs in a statement or a struct.
    Cost: about a microsecond a row of ten columns.
    """
    if not rows:
        return []
    key = (type_, tuple(rows[0].keys()))
    convert = _shapes.get(key)
    if convert is None:
        convert = shape(type_, key[1])
        assert len(_shapes) < _SHAPES_MAX, "statements or types are made at run time"
        _shapes[key] = convert
    return convert(rows)


def shape(type_: Any, columns: tuple[str, ...]) -> Callable[[list[Any]], list[Any]]:
    """Return what turns rows of these columns into `type_`.

    Raises: TypeError when the two do not fit.
    """
    if type_ is dict:
        return lambda rows: [dict(row) for row in rows]
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return _struct_shape(type_, columns)
    if len(columns) != 1:
        raise TypeError(f"{type_!r} is one column, the statement returns {', '.join(columns)}")
    return lambda rows: msgspec.convert([row[0] for row in rows], list[type_])


def _struct_shape(
    struct: type[msgspec.Struct], columns: tuple[str, ...]
) -> Callable[[list[Any]], list[Any]]:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    unknown = [column for column in columns if column not in fields]
    missing = [n for n, field in fields.items() if field.required and n not in columns]
    if unknown or missing or len(set(columns)) != len(columns):
        raise TypeError(
            f"{struct.__name__} does not fit its statement: "
            f"columns without a field {unknown}, fields without a column {missing}"
        )
    hints = get_type_hints(struct, include_extras=True)
    # The types are known at run time only, which a checker cannot follow.
    rows_type: Any = list[tuple.__class_getitem__(tuple(hints[name] for name in columns))]  # type: ignore[misc]
    positional = [
        parameter.name
        for parameter in inspect.signature(struct).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    is_positional = list(columns) == positional[: len(columns)]

    def convert(rows: list[Any]) -> list[Any]:
        try:
            values = msgspec.convert([tuple(row) for row in rows], rows_type)
        except msgspec.ValidationError as error:
            error.add_note(f"{struct.__name__} from columns {', '.join(columns)}")
            raise
        if is_positional:
            return [struct(*row) for row in values]
        return [struct(**dict(zip(columns, row, strict=True))) for row in values]

    return convert
