"""The panel of accuracy on trained and held-out rows, with the phases that a run went through."""
from atlas_jax.monitor import phases
from atlas_jax.monitor.curves import QUIET, TRAIN, VAL, Series, draw_lines, finish

PANEL = "accuracy"
TRAINED = "eval/train_accuracy"
LINES = {TRAINED: ("trained on", TRAIN, "o-"), phases.ACCURACY: ("held out", VAL, "o-")}
UNTOLD = 2  # Phases before this one say that there is nothing to say: they get no mark.


def names_of(series: Series) -> tuple[str, ...]:
  """Returns the panel's name, if the run measured accuracy."""
  return (PANEL,) if phases.ACCURACY in series else ()


def marks(series: Series) -> list[tuple[float, str]]:
  """Returns where each phase begins on the axis of the series, and its name."""
  if phases.PHASE not in series:
    return []
  timed = [phases.TimedPhase(i, phases.PHASES[int(y)]) for i, y in enumerate(series[phases.PHASE][1])]
  places = series[phases.PHASE][0]
  return [(float(places[one.step]), one.phase) for one in phases.changes(timed)
          if phases.PHASES.index(one.phase) >= UNTOLD]


def _draw(axes, series: Series) -> None:
  drawn = draw_lines(axes, series, LINES, ending="{:.3f}")
  finish(axes, "Accuracy of the likeliest token", series.x_label, "fraction right", bool(drawn),
         f"no {phases.ACCURACY}")
  if not drawn:
    return
  axes.set_ylim(-0.03, 1.15)
  for place, phase in marks(series):
    axes.axvline(place, color=QUIET, linestyle=":", linewidth=1.2)
    axes.text(place, 1.14, f" {phase}", rotation=90, ha="left", va="top", color=QUIET, fontsize=9)


PANELS = {PANEL: _draw}
