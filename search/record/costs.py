"""What students cost as they were trained: alone, or with their teacher's classifier."""

from kdcore.networks.cost import NetworkCost
from search.record.networks import Trained, methods_of
from search.record.record import SearchRecord


def reused_key(student: str, method: str, teacher: str) -> str:
    """What the costs of a student stand under that has its teacher's classifier, by a method."""
    return f"{student}, {method} from {teacher}"


def costed_as(record: SearchRecord, trained: Trained) -> str:
    """The key in `student_costs` of a student as it was trained."""
    methods = methods_of(trained.objective).split(" + ")
    begins = tuple(reused_key(trained.student, method, "") for method in methods)
    if not any(key.startswith(begins) for key in record.student_costs):
        return trained.student  # without asking for the teacher, which takes longer
    teacher = record.teacher_of(trained)
    whole = (f"{begin}{teacher}" for begin in begins)
    return next((key for key in whole if key in record.student_costs), trained.student)


def cost_of(record: SearchRecord, trained: Trained) -> NetworkCost | None:
    """What a student costs as it was trained; none if it was not measured."""
    return record.student_costs.get(costed_as(record, trained))
