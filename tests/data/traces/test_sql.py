"""SQL stands in two modules, is the same for both databases, and never has a value put into its text."""
import ast
import pathlib
import re
import sqlite3

from atlas_jax.data.traces import sql, sql_schema

ROOT = pathlib.Path(__file__).parents[3]
ROOM = ROOT / "atlas_jax" / "data" / "traces"
SQL = re.compile(r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|DROP\s+TABLE"
                 r"|CREATE\s+(TABLE|INDEX|SCHEMA)|ALTER\s+TABLE|PRAGMA\s+\w+)\b", re.DOTALL)
OWNERS = ("sql.py", "sql_schema.py")
RUNNERS = ("execute", "executemany", "executescript", "rows", "run", "run_many")


def texts(path):
  """The texts of a module, those of its docstrings left out."""
  tree = ast.parse(path.read_text())
  documented = {id(node.body[0].value) for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)}
  return [(node.lineno, node.value) for node in ast.walk(tree)
          if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented]


def test_sql_stands_nowhere_else():
  package = sorted((ROOT / "atlas_jax").rglob("*.py"))
  found = [f"{path.name}:{line}" for path in package for line, text in texts(path) if SQL.search(text)
           and path not in [ROOM / owner for owner in OWNERS]]
  assert found == []
  assert any(SQL.search(text) for owner in OWNERS for _, text in texts(ROOM / owner))


def formatted(tree):
  """Lines on which a text is put together from values."""
  for node in ast.walk(tree):
    if isinstance(node, ast.JoinedStr):
      yield node.lineno
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
      yield node.lineno
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
      yield node.lineno


def test_no_sql_is_formatted():
  for owner in OWNERS:
    assert list(formatted(ast.parse((ROOM / owner).read_text()))) == [], owner
  wrong = ['f"SELECT {x}"', '"SELECT %s" % x', '"SELECT " + x', '"SELECT {}".format(x)']
  assert [list(formatted(ast.parse(text))) for text in wrong] == [[1]] * 4


def test_statements_that_are_run_come_from_the_module_of_statements():
  ours = re.compile(r"sql\.\w+(\(.*\))?|statement|begin|getattr\(statement, self\._dialect\)|arguments")
  for path in sorted(ROOM.glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      called = node.func if isinstance(node, ast.Call) else None
      if isinstance(called, ast.Attribute) and called.attr in RUNNERS and node.args:
        said = ast.unparse(node.args[0])
        assert ours.fullmatch(said), f"{path.name}:{node.lineno}: {said}"


def test_both_dialects_have_the_same_parameters():
  statements = [value for value in vars(sql).values() if isinstance(value, sql.Statement)]
  statements += [*sql.CLAUSES.values(), *sql.CLEAR_SESSION, sql.page(tuple(sql.CLAUSES), newest_first=True)]
  assert len(statements) > 30
  for statement in statements:
    names = set(re.findall(r"%\((\w+)\)s", statement.postgres))
    # Locks and counters are PostgreSQL's alone.
    assert statement.sqlite == "SELECT 1" or names == set(re.findall(r"(?<!:):(\w+)", statement.sqlite))
    assert "%(" not in statement.sqlite


def test_versions_rise_by_one_and_sqlite_takes_every_migration():
  assert [one.version for one in sql_schema.MIGRATIONS] == list(range(1, sql_schema.VERSION + 1))
  connection = sqlite3.connect(":memory:")
  for migration in sql_schema.MIGRATIONS:
    for statement in migration.sqlite:
      connection.execute(statement)


def test_pages_are_read_in_the_order_of_an_index():
  connection = sqlite3.connect(":memory:")
  for migration in sql_schema.MIGRATIONS:
    for statement in migration.sqlite:
      connection.execute(statement)
  values = {"review_status": "approved", "learning_key": "k", "at": "2025", "at_id": 1, "rows": 9}
  for names in (("review_status",), ("review_status", "newer_than"), ("newer_than",), ("learning_key",)):
    for newest_first in (False, True):
      if newest_first:
        names = tuple("older_than" if name == "newer_than" else name for name in names)
      statement = sql.page(names, newest_first=newest_first)
      plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement.sqlite}",
                                                            {**values, "offset": 0}))
      assert "_page_idx" in plan and "TEMP B-TREE" not in plan, (names, plan)
