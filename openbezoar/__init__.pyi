from openbezoar import stats as stats
from openbezoar.errors import UserError as UserError
from openbezoar.face.chat_model import ChatModel as ChatModel
from openbezoar.face.chat_model import load as load
from openbezoar.face.runs import Run as Run
from openbezoar.face.runs import ScoreRow as ScoreRow
from openbezoar.face.runs import open_run as open_run
from openbezoar.face.runs import run as run
from openbezoar.forest import Scorer as Scorer
from openbezoar.forest import TokenPath as TokenPath
from openbezoar.harness.forest_lm import ForestLM as ForestLM
from openbezoar.plan.listed import PlannedStep as PlannedStep
from openbezoar.plan.listed import RunPlan as RunPlan
from openbezoar.plan.listed import plan as plan
from openbezoar.training import losses as losses
from openbezoar.verbs.train.in_memory import Trained as Trained
from openbezoar.verbs.train.in_memory import dpo as dpo
from openbezoar.verbs.train.in_memory import kto as kto
from openbezoar.verbs.train.in_memory import sft as sft

__all__: list[str]
__version__: str
