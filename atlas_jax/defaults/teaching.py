"""Settings of a teacher that is trained by what its guidance does to a student's answers."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least, one_of, one_of_or_module, or_none

OPTIONAL = config_dict.placeholder
# See `readers`, of which these entries are a part.
READERS = {
  "teacher": "teacher",
  "teacher.student": "teacher if teacher.sampler=native",
  "teacher.endpoint": "teacher if teacher.sampler=endpoint",
  "teacher.student_template": "teacher if teacher.sampler=native & teacher.student!=None",
  "teacher.probe_tokens": "teacher if teacher.shown=probe",
  "teacher.verdict_weight": "teacher if teacher.shown!=probe",
  "teacher.reliance_weight": "teacher if teacher.sampler=native",
  "teacher.leak_penalty": "teacher if teacher.leak=penalty",
  "teacher.fixed_hint": "teacher if data.held_out_frac!=0.0",
}


def groups() -> dict:
  """Returns what the recipe teacher reads besides; see `rollout.teaching` for what is said."""
  return {
      "teacher": {
          # The student: a pretrained model's folder, hf:NAME or a run's workdir; None: a copy of what the
          # teacher starts from. It is never trained.
          "student": OPTIONAL(str),
          # Who answers for it: "native" (our own sampler), "endpoint" (a server with OpenAI's routes, such as
          # one of --mode=serve), or a dotted module, see rollout/students.py.
          "sampler": one_of_or_module("native", "native endpoint"),
          "endpoint": _endpoint(),
          # Its chat template: its "own" where data.chat_template is set, "texts" for none, or a folder.
          "student_template": "own",
          "max_tokens": at_least(1, 256),  # Of a student's answer, the one that stops it included.
          "temperature": at_least(0, 0.0),  # Of the student's answers; 0: the likeliest.
          "probe_tokens": at_least(0, 50),  # Of what the student says before it solves; 0: it is not asked.
          # What the teacher sees of the student: the "probe"; its "attempt" without guidance; or the attempt,
          # of questions alone in which it fails ("failure").
          "shown": one_of("probe", "probe attempt failure"),
          "templates": "chat",  # Texts of the protocol: "chat", "tags", "plain", or a JSON file.
          "formats": _formats(),  # Texts of one message in place of the set's; None: the set's.
          "grader": "correct",  # The reward, a name as in config.rewards, that grades answers from 0 to 1.
          # Names and weights as in config.rewards; "teaching" is the gain by config.teacher.reward. Others
          # score the teacher's text, and may ask for columns, see rollout/lessons.py.
          "rewards": "teaching",
          "reward": _reward(),  # See rollout/teaching_reward.py.
          # Guidance that contains the answer: earns "zero", is left out ("mask"), or costs ("penalty").
          "leak": one_of("zero", "zero mask penalty"),
          "leak_penalty": at_least(0, 1.0),  # The cost.
          # For a reply that says rightly whether the attempt that was shown is right.
          "verdict_weight": at_least(0, 0.0),
          # Per nat and token by which guidance makes the student's answer likelier, taken off the reward;
          # 0.0: measured alone. None: not measured.
          "reliance_weight": at_least(0, OPTIONAL(float)),
          # Evaluation: what every question is told in place of guidance, as a control; None: no such control.
          "fixed_hint": or_none("Work step by step and check the result before you answer."),
      },
  }


def _endpoint() -> dict:
  return {
      "url": OPTIONAL(str),  # Up to the version, such as http://127.0.0.1:8000/v1.
      "served_as": OPTIONAL(str),  # The student's name there.
      "key_variable": OPTIONAL(str),  # Variable of the environment with the key; None: none is sent.
      "timeout_s": above_zero(60.0),  # Of one try.
      "deadline_s": above_zero(180.0),  # Of all tries of one answer.
      "tries": at_least(1, 3),  # Requests for one answer, at most.
      "parallel_requests": at_least(1, 16),  # At the same time.
      "form": one_of("chat", "chat texts"),  # "texts": for a student without a chat template.
  }


def _formats() -> dict:
  return {
      "baseline": OPTIONAL(str),  # With {question}.
      "probe": OPTIONAL(str),  # With {question}.
      "teacher": OPTIONAL(str),  # With {question}, {approach}, {attempts} or {shown}.
      "guided": OPTIONAL(str),  # With {question} and {guidance}.
  }


def _reward() -> dict:
  return {  # None: as the preset has it.
      "preset": one_of("r3", "r0 r1 r2 r3 r4"),  # Revision of the reward, see its module.
      "degradation": one_of(OPTIONAL(str), "zero penalty"),  # For guidance that spoils an answer.
      "degradation_penalty_multiplier": at_least(0, OPTIONAL(float)),  # Times the loss of grade.
      "efficiency_weight": at_least(0, OPTIONAL(float)),  # Of the bonus for short guidance.
      "keep_correct_value": at_least(0, OPTIONAL(float)),  # For an answer that stays right.
      "efficiency_tokens": above_zero(OPTIONAL(float)),  # Length at which half of the bonus is left.
  }
