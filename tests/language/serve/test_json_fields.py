"""Fields of requests: each is used or refused by its name."""
import pytest

from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.json_fields import JsonFields, whole_numbers


def refused(call):
  with pytest.raises(ApiError) as caught:
    call()
  assert caught.value.status == 400
  return caught.value


def test_a_field_of_another_kind_is_refused_by_name():
  cases = [({"n": "3"}, int), ({"n": True}, int), ({"n": 1.5}, int), ({"n": 1}, bool), ({"n": [1]}, float),
           ({"n": {}}, list), ({"n": 1}, str)]
  for values, kind in cases:
    error = refused(lambda values=values, kind=kind: JsonFields(values).take("n", kind))
    assert error.param == "n"
    assert "must be" in error.message


def test_a_number_has_its_bounds_and_null_is_absent():
  assert JsonFields({"n": None}).take("n", int, 5) == 5
  assert JsonFields({"n": 2}).take("n", float) == 2.0
  assert "at least 1" in refused(lambda: JsonFields({"n": 0}).take("n", int, least=1)).message
  assert "at most 1" in refused(lambda: JsonFields({"n": 2}).take("n", int, most=1)).message
  assert refused(lambda: JsonFields({}).need("n", int)).code == "missing_required_parameter"


def test_what_is_left_is_refused_and_the_nearest_name_told():
  fields = JsonFields({"temprature": 1}, "options")
  fields.take("temperature", float)
  error = refused(fields.done)
  assert error.param == "options.temprature"
  assert "'temperature'" in error.message
  JsonFields({"temprature": None}).done()  # Typed objects of clients have a null for what is not there.


def test_a_field_that_is_not_there_may_ask_for_nothing():
  JsonFields({"echo": False}).refuse("echo", "leave it out", allowed=(False,))
  JsonFields({"echo": None}).refuse("echo", "leave it out")
  for value in (True, 0, ""):
    fields = JsonFields({"echo": value})
    assert refused(lambda fields=fields: fields.refuse("echo", "no", allowed=(False,))).code == (
      "unsupported_parameter")


def test_ids_are_whole_numbers_that_fit():
  assert whole_numbers([1, 2], "tokens", lambda one: one < 3) == (1, 2)
  for values in ([3], [True], ["1"], [1.0], 4):
    refused(lambda values=values: whole_numbers(values, "tokens", lambda one: one < 3))
