"""Metrics of post-training, as lines of `schema`: writer -> "pattern | unit | meaning" of each."""
LINES = {
    "runtime": """
runtime/sessions | sessions | that have ended, so far
runtime/lane_auto_share | fraction | of the sessions since the row before that ran unsupervised
runtime/verified_share | fraction | of those with an answer whose last check passed
runtime/accuracy | fraction | mean grade of those that a program graded
runtime/tokens_by_role/{role} | tokens | of these sessions, prompts and replies
runtime/teacher_error_share | fraction | of validations that gave no verdict
runtime/no_verdict_share | fraction | of answers that were to be scored and have no reward
runtime/drift_alerts | sessions | of these whose reward is far from its baseline
runtime/queue | sessions | that wait for room
runtime/late_threads | threads | of agents that answered after their time, so far
runtime/spooled | sessions | that wait for the store
runtime/leases_expired | sessions | whose process was gone, so far
runtime/events_dropped | events | that a slow sink did not get, so far
runtime/sinks_detached | sinks | that raised, so far
""",
    "teacher": """
teacher/student_accuracy | fraction | mean grade of the student's answers with guidance
teacher/baseline_accuracy | fraction | mean grade of its answers to the same questions without
teacher/accuracy_delta | fraction | the difference
teacher/improvement_rate | fraction | of answers whose grade guidance raised
teacher/degradation_rate | fraction | of answers whose grade it lowered
teacher/teaching_length_mean_tokens | tokens | of a guidance
teacher/teaching_length_std_tokens | tokens | its standard deviation
teacher/approach_length_mean_tokens | tokens | of what the student says before it solves
teacher/token_efficiency | | mean reward per 100 tokens of guidance
teacher/leaked_frac | fraction | of guidances that contain the answer
teacher/masked_frac | fraction | of replies that are left out, as without a truth or an answer
teacher/malformed_frac | fraction | of replies that cannot be read
teacher/silent_frac | fraction | of replies without guidance, the student's answer stays what it was
teacher/failed_frac | fraction | of rows with an answer of the student that could not be had
teacher/passed_frac | fraction | of questions passed over since the student can answer them, "failure" alone
teacher/verdict_accuracy | fraction | of verdicts on an attempt that are right
teacher/reliance_nats | nats | per token, by which guidance makes the student's answers likelier
teacher/student_s | s | that the student's answers took
""",
    "evaluation teaching": """
eval/teaching_accuracy | fraction | mean grade of held-out answers with guidance
eval/teaching_baseline_accuracy | fraction | without
eval/teaching_placebo_accuracy | fraction | with the guidance of another question
eval/teaching_fixed_accuracy | fraction | with one hint for all questions
eval/teaching_over_placebo | fraction | gain of guidance over the placebo
eval/teaching_over_fixed | fraction | gain of guidance over the fixed hint
eval/teaching_learning_rate | fraction | LR, the mean change of a grade
eval/teaching_non_degradation_rate | fraction | NDR, of answers that did not get worse
eval/teaching_degradation_rate | fraction | of answers that did
eval/teaching_improvement_rate | fraction | of answers that got better
eval/teaching_degradation_severity | fraction | mean loss of those that got worse
eval/teaching_recovery_rate | fraction | of wrong answers that became right
eval/teaching_completion_rate | fraction | of guided answers that came to their end
eval/teaching_learning_efficiency_per_token | | LES, change per token of guidance
eval/teaching_learning_efficiency_per_1k | | per 1,000 tokens
eval/teaching_teaching_efficiency_score | | TES, change times completion per 1,000 tokens
eval/teaching_token_efficiency | fraction | of the tokens of an answer that guidance saves
eval/teaching_guidance_tokens | tokens | of a guidance
eval/teaching_leaked_frac | fraction | of guidances that contain the answer
eval/teaching_malformed_frac | fraction | of replies that cannot be read
eval/teaching_silent_frac | fraction | of graded questions whose guidance is empty
eval/teaching_contaminated_frac | fraction | of held-out prompts that show the answer
eval/teaching_graded_count | questions | graded with and without guidance
eval/teaching_mcnemar_p | | exact McNemar test of guidance against none
eval/teaching_t_p | | paired t-test of the same
eval/teaching_cohens_d | | mean change over the deviation of changes
eval/teaching_accuracy_{bound} | fraction | bound of the interval over questions
eval/teaching_baseline_accuracy_{bound} | fraction | likewise
eval/teaching_learning_rate_{bound} | fraction | likewise
eval/teaching_non_degradation_rate_{bound} | fraction | likewise
""",
    "gkd with config.distill.baseline": """
eval/baseline_success | fraction | of held-out problems that the student solved before it learnt
eval/baseline_tokens | tokens | of an answer then
eval/baseline_success_delta | fraction | gained since
eval/baseline_success_relative | fraction | the gain over the success then
eval/baseline_meets_success_target | | 1 where 0.10 is gained
eval/baseline_token_reduction_pct | % | by which answers became shorter
eval/baseline_meets_token_target | | 1 where that is 30%
eval/baseline_meets_all_targets | | 1 where both are met
""",
    "ranked": """
ranked/preference_nats | nats | divergence of the ranking from that of the scores
ranked/pair_nats | nats | loss of pairs
ranked/kl_nats | nats | to the reference
ranked/best_nats | nats | per token of the best response
ranked/pairs | pairs | with an order, per prompt
ranked/pairs_right_frac | fraction | of them that likelihoods put right
val/best_nats | nats | as ranked/best_nats
val/preference_nats | nats | as ranked/preference_nats
val/pair_nats | nats | as ranked/pair_nats
val/kl_nats | nats | as ranked/kl_nats
val/pairs | pairs | with an order
val/pairs_right_frac | fraction | of them that likelihoods put right
val/prompts | prompts | evaluated
val/top1_prompts | prompts | whose responses are not all tied
val/top1_frac | fraction | of these whose likeliest response is the best
""",
}
