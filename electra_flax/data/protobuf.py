"""Messages of others' protocol buffers, declared here: no package that we need has their compiled definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto


def message_classes(messages: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Any]:
    """Return the classes of {message: {field: (number, type)}}.

    A type is one of the language's ("int64"), or another message, and "repeated" may stand before it.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{'.'.join(messages)}.proto", package="messages", syntax="proto3")
    for message, fields in messages.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            *repeated, kind = kind.split()
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            field = declared.field.add(name=name, number=number, label=label)
            if kind in messages:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".messages.{kind}"
            else:
                field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"messages.{name}")) for name in messages}
