"""Writes boards as CSV files, and stands in for the hub's client."""
import csv
import types

HEADER = ("source", "question", "answer", "rating")


def write(file, rows, header=HEADER) -> None:
  """Writes (question, answer, rating) texts as a file of boards."""
  with open(file, "w", newline="") as opened:
    writer = csv.writer(opened)
    writer.writerow(header)
    writer.writerows(("made", *row) for row in rows)


def texts(boards, characters: str) -> list[tuple[str, str, int]]:
  """Turns boards into rows of a file; a cell's character is at its number."""
  def text(cells):
    return "".join(characters[cell] for cell in cells)

  return [(text(question), text(answer), int(rating))
          for question, answer, rating, _ in zip(*boards, strict=True)]


def hub(folder):
  """Returns a client of a hub that holds the files of a folder, none of them on this machine yet."""
  def hf_hub_download(repo, name, *, repo_type, local_files_only):
    assert (repo, repo_type) == ("owner/name", "dataset")
    if local_files_only:
      raise FileNotFoundError("not in the local cache")
    return str(folder / name)

  return types.SimpleNamespace(hf_hub_download=hf_hub_download)
