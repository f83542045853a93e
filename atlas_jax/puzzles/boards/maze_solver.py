"""Draws mazes and finds shortest paths in them.

A maze is a flat array of tokens. Sets of its cells are Python integers with a spare column of walls on the
right, so that all cells of a set step at once by a shift and none steps around an edge.
"""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

WALL = 1
FREE = 2
START = 3
GOAL = 4
PATH = 5
_TRIED_STARTS = 8


class Solution(NamedTuple):
  """A shortest path."""
  cells: list[int]  # from start to goal, both among them; empty if there is none
  is_unique: bool   # whether it is the only one


def solve(maze: np.ndarray) -> Solution:
  """Finds a shortest path through the cells that are not walls, stepping up, down, left and right.

  Of several shortest paths it is the one found by stepping back from the goal, each time to the first cell
  in reading order.

  Args:
    maze: [side * side] tokens with one START and one GOAL.
  """
  side = round(len(maze) ** 0.5)
  # A search in waves over sets of cells: a step of all of them is four shifts of one integer of side *
  # (side + 1) bits, in about a microsecond, where a queue of cells would take a loop of Python for
  # each. Generation tries thousands.
  passable, (start, goal) = _cells(maze != WALL, side), (_cells(maze == kind, side) for kind in (START, GOAL))
  waves = []
  for reached in _waves(passable, start, side + 1):
    waves.append(reached)
    if reached[0] & goal:
      break
  else:
    return Solution([], False)
  path = [goal]
  for wave, _ in reversed(waves[:-1]):
    # Each cell of a wave has a neighbour in the wave before. `back & -back` is its lowest bit, the first such
    # cell in reading order: the answer is fixed where there are several.
    back = _neighbours(path[-1], side + 1) & wave
    path.append(back & -back)
  return Solution([_cell(one, side) for one in reversed(path)], not waves[-1][1] & goal)


def path_of(answer: np.ndarray) -> int:
  """Returns steps of the path drawn in an answer, 0 if it does not lead from start to goal in one piece."""
  side = round(len(answer) ** 0.5)
  drawn = _cells(answer >= START, side)
  seen = 0
  # Whether all drawn cells are one piece. A branch is in one piece too: then there are more steps than the
  # shortest path has, which `maze.read` says.
  for reached, _ in _waves(drawn, _cells(answer == START, side), side + 1):
    seen |= reached
  return int((answer == PATH).sum()) + 1 if seen == drawn else 0


def draw_maze(side: int, random: np.random.RandomState, min_path: int, loop_frac: float) -> np.ndarray | None:
  """Draws a maze with a start and a goal that one shortest path joins.

  Rooms lie on every other row and column. A depth-first walk in random directions opens walls until every
  room is reached, then some of the other walls between rooms are opened.

  Args:
    side: rows and columns; where it is even, a wall runs along one edge of either direction, drawn too.
    random: what is drawn with.
    min_path: fewest steps from start to goal.
    loop_frac: fraction of the walls left between rooms that is opened.

  Returns:
    [side * side] tokens, or None if the tried starts have no goal far enough with one shortest path.
  """
  n_rooms = (side + 1) // 2
  # Rooms on every other row leave one row over where the side is even: at the top or at the bottom, drawn.
  first = random.randint(0, 2, 2) if side % 2 == 0 else (0, 0)
  rooms = np.add.outer((first[0] + 2 * np.arange(n_rooms)) * side, first[1] + 2 * np.arange(n_rooms)).ravel()
  doors, walls = _walk(n_rooms, random)
  opened = random.permutation(len(walls))[:round(loop_frac * len(walls))]
  pairs = np.array(doors + [walls[wall] for wall in opened])
  maze = np.full(side * side, WALL, np.uint8)
  maze[rooms] = FREE
  maze[rooms[pairs].sum(axis=1) // 2] = FREE  # The cell between two rooms.
  passable = _cells(maze == FREE, side)
  # A start in the middle may reach no cell far enough; a few others are tried before the maze is given up.
  for room in random.permutation(len(rooms))[:_TRIED_STARTS]:
    start = int(rooms[room])
    goals = _far_cells(passable, start, side, min_path)
    if goals:
      maze[start], maze[goals[random.randint(len(goals))]] = START, GOAL
      return maze
  return None


def _walk(n_rooms: int, random: np.random.RandomState) -> tuple[list, list]:
  """Walks through n_rooms * n_rooms rooms depth first; gives the pairs of rooms it joins, and the others."""
  # All directions are drawn before the walk: random numbers that a maze takes do not depend on how it goes.
  turns = np.argsort(random.rand(n_rooms * n_rooms, 4), axis=1).tolist()
  ways = {room: [room + step for step, fits in (
      (-n_rooms, room >= n_rooms), (n_rooms, room < n_rooms * (n_rooms - 1)),
      (-1, room % n_rooms > 0), (1, room % n_rooms < n_rooms - 1)) if fits] for room in range(n_rooms**2)}
  stack = [random.randint(n_rooms * n_rooms)]
  seen = set(stack)
  doors = set()
  while stack:
    room = stack[-1]
    while turns[room]:
      turn = turns[room].pop()
      if turn < len(ways[room]) and ways[room][turn] not in seen:
        break
    else:
      stack.pop()
      continue
    following = ways[room][turn]
    seen.add(following)
    doors.add((min(room, following), max(room, following)))
    stack.append(following)
  walls = [(room, other) for room, others in ways.items() for other in others
           if room < other and (room, other) not in doors]
  return sorted(doors), walls


def _far_cells(passable: int, start: int, side: int, min_path: int) -> list[int]:
  """Returns the cells at least `min_path` steps away to which there is one shortest path."""
  row, col = divmod(start, side)
  found = []
  for steps, (reached, several) in enumerate(_waves(passable, 1 << row * (side + 1) + col, side + 1)):
    # Only goals with one shortest path: with several, a right answer could differ from the label.
    left = reached & ~several if steps >= max(1, min_path) else 0
    while left:
      found.append(_cell(left & -left, side))
      left &= left - 1
  return found


def _waves(passable: int, start: int, stride: int) -> Iterator[tuple[int, int]]:
  """Yields for 0, 1, 2... steps the cells so far from the start, and those with several shortest paths."""
  reached = start
  several = 0
  fresh = passable & ~start
  while reached:
    yield reached, several
    once = twice = 0
    # A cell that two cells of the last wave step to has two shortest paths, and so has one that is reached
    # from such a cell. What steps off the board falls on the spare column or beyond, which `fresh` has not.
    for step in (reached << 1, reached >> 1, reached << stride, reached >> stride):
      twice |= once & step
      once |= step
    several = (twice | _neighbours(several, stride)) & fresh
    reached = once & fresh
    fresh &= ~reached


def _neighbours(cells: int, stride: int) -> int:
  return cells << 1 | cells >> 1 | cells << stride | cells >> stride


def _cells(chosen: np.ndarray, side: int) -> int:
  """Turns a mask into a set of cells."""
  padded = np.pad(chosen.reshape(side, side), ((0, 0), (0, 1)))
  return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def _cell(one: int, side: int) -> int:
  """Turns a set of one cell into its index."""
  row, col = divmod(one.bit_length() - 1, side + 1)
  return row * side + col
