"""What every metric name means: formula, source and a sentence for a first-time reader."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Definition:
    """One metric. `formula` counts tasks from 1; R[i,j] is the accuracy on task j after learning task i of T."""

    name: str
    formula: str
    source: str
    higher_is_better: bool
    meaning: str


DEFINITIONS: dict[str, Definition] = {
    "last_accuracy": Definition(
        "Last accuracy",
        "sum_j n_j R[T,j] / sum_j n_j",
        "common usage in class-incremental learning; n_j test examples of task j",
        True,
        "Share of all test examples answered rightly at the end.",
    ),
    "average_accuracy": Definition(
        "Average accuracy",
        "A_T = (1/T) sum_j R[T,j]",
        "Lopez-Paz and Ranzato, arXiv 1706.08840",
        True,
        "Mean over tasks of the accuracy at the end; every task counts the same.",
    ),
    "average_incremental_accuracy": Definition(
        "Average incremental accuracy",
        "(1/T) sum_k A_k, A_k = (1/k) sum_{j<=k} R[k,j]",
        "Rebuffi et al. (iCaRL), arXiv 1611.07725",
        True,
        "Average accuracy on the tasks seen so far, over the whole stream.",
    ),
    "learning_accuracy": Definition(
        "Learning accuracy",
        "LA = (1/T) sum_j R[j,j]",
        "Riemer et al. (MER), arXiv 1810.11910",
        True,
        "Accuracy on each task right after it was learned.",
    ),
    "forgetting": Definition(
        "Forgetting",
        "F_T = (1/(T-1)) sum_{j<T} (max_{j<=l<T} R[l,j] - R[T,j])",
        "Chaudhry et al., arXiv 1801.10112",
        False,
        "How far old tasks fell from their best accuracy.",
    ),
    "learned_minus_final": Definition(
        "Learned minus final",
        "(1/(T-1)) sum_{j<T} (R[j,j] - R[T,j]) = -BWT",
        "follows from arXiv 1706.08840",
        False,
        "How far old tasks fell from the accuracy they were learned to.",
    ),
    "relative_forgetting": Definition(
        "Relative forgetting",
        "(1/(T-1)) sum_{j<T} (R[j,j] - R[T,j]) / R[j,j]",
        "common usage",
        False,
        "The share of what was learned that was lost.",
    ),
    "backward_transfer": Definition(
        "Backward transfer",
        "BWT = (1/(T-1)) sum_{j<T} (R[T,j] - R[j,j])",
        "Lopez-Paz and Ranzato, arXiv 1706.08840",
        True,
        "Change of old tasks since they were learned; below 0 is forgetting.",
    ),
    "backward_transfer_trace": Definition(
        "Backward transfer, TRACE form",
        "(1/T) sum_{j<T} (R[T,j] - R[j,j])",
        "Wang et al. (TRACE), arXiv 2310.06762",
        True,
        "Backward transfer divided by T instead of T - 1.",
    ),
    "backward_transfer_matrix": Definition(
        "Backward transfer, matrix form",
        "sum_{i>=2} sum_{j<i} (R[i,j] - R[j,j]) / (T(T-1)/2)",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "Backward transfer over the whole stream, not only at its end.",
    ),
    "positive_backward_transfer": Definition(
        "Positive backward transfer",
        "BWT+ = max(BWT, 0), matrix form",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "Improvement of old tasks by later ones.",
    ),
    "remembering": Definition(
        "Remembering",
        "REM = 1 - |min(BWT, 0)|, matrix form",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "1 where nothing was forgotten.",
    ),
    "forward_transfer": Definition(
        "Forward transfer",
        "FWT = (1/(T-1)) sum_{j>=2} (R[j-1,j] - b[j])",
        "Lopez-Paz and Ranzato, arXiv 1706.08840; b a randomly initialised model or chance",
        True,
        "Head start on the next task over a model that knows nothing.",
    ),
    "forward_transfer_without_baseline": Definition(
        "Next-task accuracy",
        "(1/(T-1)) sum_{j>=2} R[j-1,j]",
        "forward transfer without the baseline of arXiv 1706.08840",
        True,
        "Accuracy on the next task before it is learned.",
    ),
    "forward_transfer_matrix": Definition(
        "Forward transfer, matrix form",
        "sum_{i<j} R[i,j] / (T(T-1)/2)",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "Accuracy on all later tasks before they are learned.",
    ),
    "forward_transfer_pretrained": Definition(
        "Forward transfer against the pretrained model",
        "(1/(T-1)) sum_{j>=2} (R[j-1,j] - R[0,j])",
        "arXiv 1706.08840 with the pretrained model as the baseline",
        True,
        "Head start on the next task over the pretrained model.",
    ),
    "single_task_transfer": Definition(
        "Transfer against single-task training",
        "(1/T) sum_j (R[j,j] - S[j])",
        "Zhao et al. (SAPT), arXiv 2401.08295; S[j] a model trained on task j alone",
        True,
        "How much better a task is learned here than alone.",
    ),
    "zero_shot_transfer": Definition(
        "Zero-shot transfer",
        "(1/(T-1)) sum_{j>=2} (1/(j-1)) sum_{i<j} R[i,j]",
        "Zheng et al. (ZSCL), arXiv 2303.06628, there called Transfer",
        True,
        "Accuracy kept on tasks that are still to come.",
    ),
    "matrix_average": Definition(
        "Average over the matrix",
        "(1/T^2) sum_i sum_j R[i,j]",
        "Zheng et al. (ZSCL), arXiv 2303.06628, there called Avg",
        True,
        "Mean of all cells, tasks that are still to come included.",
    ),
    "stability": Definition(
        "Stability",
        "(1/(T-1)) sum_{j<T} R[T,j]",
        "common usage",
        True,
        "Accuracy on the old tasks at the end.",
    ),
    "plasticity": Definition(
        "Plasticity",
        "R[T,T]",
        "common usage",
        True,
        "Accuracy on the last task right after it was learned.",
    ),
    "stability_plasticity_trade_off": Definition(
        "Stability-plasticity trade-off",
        "2 s p / (s + p), s stability, p plasticity",
        "common usage, harmonic mean",
        True,
        "High only where both the old and the new are known.",
    ),
    "intransigence": Definition(
        "Intransigence",
        "I_T = J_T[T] - R[T,T]",
        "Chaudhry et al., arXiv 1801.10112; J_T trained jointly on tasks 1 to T",
        False,
        "How much worse the last task is learned than in joint training.",
    ),
    "upper_bound_gap": Definition(
        "Gap to joint training",
        "(1/T) sum_j (J[j] - R[T,j])",
        "common usage; J trained on all tasks at once",
        False,
        "How far the end is below training on all tasks at once.",
    ),
    "relative_upper_bound_gap": Definition(
        "Relative gap to joint training",
        "(1/T) sum_j (J[j] - R[T,j]) / J[j]",
        "common usage; J trained on all tasks at once",
        False,
        "The gap to joint training as a share of joint training.",
    ),
    "anytime_accuracy": Definition(
        "Anytime accuracy",
        "AAA = (1/N) sum_n (1/k_n) sum_{j<=k_n} a_n[j]",
        "online continual learning; k_n tasks begun at evaluation point n of N",
        True,
        "Accuracy on the tasks begun so far, at every moment of training.",
    ),
    "minimum_accuracy": Definition(
        "Minimum accuracy",
        "min-ACC = (1/(T-1)) sum_{j<T} min_{n after task j} a_n[j]",
        "De Lange et al., arXiv 2205.13452",
        True,
        "The lowest that old tasks ever fell, between tasks included.",
    ),
    "worst_case_accuracy": Definition(
        "Worst-case accuracy",
        "WC-ACC = (1/T) a_n[T] + (1 - 1/T) min-ACC",
        "De Lange et al., arXiv 2205.13452",
        True,
        "The newest task now, the old ones at their lowest.",
    ),
    "model_size_efficiency": Definition(
        "Model size efficiency",
        "MS = min(1, (1/T) sum_i Mem(theta_1) / Mem(theta_i))",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "1 where the model does not grow with the tasks.",
    ),
    "sample_storage_efficiency": Definition(
        "Sample storage efficiency",
        "SSS = 1 - min(1, (1/T) sum_i Mem(M_i) / Mem(D))",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "1 where no training example is kept.",
    ),
    "computational_efficiency": Definition(
        "Computational efficiency",
        "CE = min(1, (1/T) sum_i eps Ops_fb(Tr_i) / Ops(Tr_i))",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "One pass over the data as a share of the operations spent.",
    ),
    "continual_learning_score": Definition(
        "Continual-learning score",
        "CL_score = sum_c w_c c",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "Weighted sum of criteria that the author chose.",
    ),
    "continual_learning_stability": Definition(
        "Continual-learning stability",
        "CL_stability = 1 - sum_c w_c stddev(c)",
        "Diaz-Rodriguez et al., arXiv 1810.13166",
        True,
        "1 where repeated runs agree on every criterion.",
    ),
}
