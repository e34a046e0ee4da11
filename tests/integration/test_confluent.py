"""Confluent's own Python client against our registry: it must notice no difference."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge.registries import Running, running

registry_module = pytest.importorskip("confluent_kafka.schema_registry")
json_module = pytest.importorskip("confluent_kafka.schema_registry.json_schema")
serialization = pytest.importorskip("confluent_kafka.serialization")

Schema, SchemaReference = registry_module.Schema, registry_module.SchemaReference
SchemaRegistryError = registry_module.error.SchemaRegistryError

TEXT = {"title": "report", "type": "object", "properties": {"summary": {"type": "string"}}}
WIDER = {**TEXT, "properties": {"summary": {"type": ["string", "null"]}}}
OTHER = {**TEXT, "properties": {"summary": {"type": "integer"}}}
ADDRESS = {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]}
ORDER = {"title": "order", "type": "object", "properties": {"to": {"$ref": "address.json"}}}


def schema(document: Any, *references: Any) -> Any:
    return Schema(json.dumps(document), "JSON", list(references))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    import socket

    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    with running(tmp_path_factory.mktemp("registry"), "sqlite: registry.db", ports[0], ports[1]) as found:
        yield found


@pytest.fixture
def client(service: Running) -> Iterator[Any]:
    """A client with empty caches; each test has subjects of its own."""
    made = registry_module.SchemaRegistryClient({"url": service.call.url})
    yield made
    made.close()


def code_of(call: Callable[[], Any]) -> tuple[int, int]:
    with pytest.raises(SchemaRegistryError) as caught:
        call()
    return caught.value.http_status_code, caught.value.error_code


def test_it_registers_and_looks_up(client: Any) -> None:
    """The id comes back by content, by version, by id; the same content under another subject has the same id."""
    id = client.register_schema("one", schema(TEXT))
    again = client.register_schema("two", Schema(json.dumps(TEXT, indent=2), "JSON"))
    latest = client.get_latest_version("one")
    found = client.lookup_schema("two", schema(TEXT))

    assert again == id
    assert (latest.schema_id, latest.version, json.loads(latest.schema.schema_str)) == (id, 1, TEXT)
    assert (found.schema_id, found.subject, found.version) == (id, "two", 1)
    assert json.loads(client.get_schema(id).schema_str) == TEXT
    assert {"one", "two"} <= set(client.get_subjects())
    assert client.get_versions("one") == [1]
    assert client.get_subjects_by_schema_id(id) == ["one", "two"]
    assert client.get_schema_types() == ["JSON"]


def test_what_is_not_there_has_its_code(client: Any) -> None:
    """Subject, version and schema are told apart."""
    client.register_schema("codes", schema(TEXT))
    assert code_of(lambda: client.get_latest_version("none")) == (404, 40401)
    assert code_of(lambda: client.get_version("codes", 7)) == (404, 40402)
    assert code_of(lambda: client.get_schema(999_999)) == (404, 40403)
    assert code_of(lambda: client.lookup_schema("codes", schema(OTHER))) == (404, 40403)
    assert code_of(lambda: client.register_schema("codes", schema({"type": "text"}))) == (422, 42201)
    assert code_of(lambda: client.register_schema("codes", Schema('"string"', "AVRO"))) == (422, 42201)


def test_compatibility_is_asked_and_enforced(client: Any) -> None:
    """What the level refuses is refused with 409, and what it takes is the next version."""
    client.register_schema("level", schema(TEXT))
    assert client.get_compatibility() == "BACKWARD"
    assert client.test_compatibility("level", schema(WIDER))
    assert not client.test_compatibility("level", schema(OTHER))
    assert not client.test_compatibility_all_versions("level", schema(OTHER), verbose=True)
    assert code_of(lambda: client.register_schema("level", schema(OTHER))) == (409, 409)
    assert client.get_versions("level") == [1]

    assert client.register_schema("level", schema(WIDER)) > 0
    assert client.get_versions("level") == [1, 2]

    client.set_compatibility("level", "NONE")
    assert client.get_compatibility("level") == "NONE"
    client.register_schema("level", schema(OTHER))
    assert client.get_versions("level") == [1, 2, 3]
    client.delete_config("level")
    assert code_of(lambda: client.get_compatibility("level")) == (404, 40408)
    assert code_of(lambda: client.set_compatibility("level", "SIDEWAYS")) == (422, 42203)


def test_deleting_takes_two_steps(client: Any) -> None:
    """Soft first, then for good; an id that was given out stays readable until then."""
    id = client.register_schema("gone", schema({"title": "gone", "type": "object"}))
    assert code_of(lambda: client.delete_subject("gone", permanent=True)) == (404, 40405)
    assert client.delete_subject("gone") == [1]
    assert "gone" not in client.get_subjects()
    assert "gone" in client.get_subjects(deleted=True)
    assert json.loads(client.get_schema(id).schema_str)["title"] == "gone"
    assert code_of(lambda: client.delete_subject("gone")) == (404, 40404)
    assert client.delete_subject("gone", permanent=True) == [1]
    assert code_of(lambda: client.delete_subject("gone")) == (404, 40401)


def test_a_version_is_deleted_by_itself(client: Any) -> None:
    """The others stay, and the number is not given again."""
    client.register_schema("few", schema(TEXT))
    client.register_schema("few", schema(WIDER))
    assert client.delete_version("few", 2) == 2
    assert client.get_versions("few") == [1]
    assert code_of(lambda: client.delete_version("few", 2)) == (404, 40406)
    client.register_schema("few", schema({**WIDER, "description": "again"}))
    assert client.get_versions("few") == [1, 3]


def test_payloads_go_through_its_serializer(client: Any) -> None:
    """What was written with a registered schema is read back by its id, and what does not fit is not written."""
    context = serialization.SerializationContext("reports", serialization.MessageField.VALUE)
    write = json_module.JSONSerializer(json.dumps(TEXT), client)
    read = json_module.JSONDeserializer(None, schema_registry_client=client)
    raw = write({"summary": "done"}, context)

    assert raw[0] == 0
    assert read(raw, context) == {"summary": "done"}
    assert client.get_latest_version("reports-value").schema_id == int.from_bytes(raw[1:5], "big")
    with pytest.raises(serialization.SerializationError):
        write({"summary": 7}, context)


def test_its_serializer_follows_references(client: Any) -> None:
    """A reference to another subject is part of the schema, on both sides."""
    client.register_schema("address", schema(ADDRESS))
    context = serialization.SerializationContext("orders", serialization.MessageField.VALUE)
    order = schema(ORDER, SchemaReference("address.json", "address", 1))
    write = json_module.JSONSerializer(order, client)
    read = json_module.JSONDeserializer(None, schema_registry_client=client)

    assert read(write({"to": {"street": "Main"}}, context), context) == {"to": {"street": "Main"}}
    with pytest.raises(serialization.SerializationError):
        write({"to": {}}, context)
    id = client.get_latest_version("orders-value").schema_id
    assert client.get_referenced_by("address", 1) == [id]
    assert code_of(lambda: client.delete_version("address", 1)) == (422, 42206)
    missing = schema(ORDER, SchemaReference("address.json", "address", 9))
    assert code_of(lambda: client.register_schema("lost", missing)) == (422, 42201)


def test_its_modes_and_contexts(client: Any) -> None:
    """A subject can be closed to writers and opened again."""
    client.register_schema("closed", schema(TEXT))
    assert client.get_global_mode() == "READWRITE"
    assert code_of(lambda: client.get_mode("closed")) == (404, 40409)
    client.update_mode("closed", "READONLY")
    assert client.get_mode("closed") == "READONLY"
    assert code_of(lambda: client.register_schema("closed", schema(WIDER))) == (422, 42205)
    assert code_of(lambda: client.update_mode("closed", "SOMETIMES")) == (422, 42204)
    client.delete_mode("closed")
    assert client.register_schema("closed", schema(WIDER)) > 0
    assert client.get_contexts() == ["."]
