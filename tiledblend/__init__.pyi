from tiledblend.compose.arrays import blend as blend
from tiledblend.compose.arrays import feather as feather
from tiledblend.compose.lazy import to_array as to_array
from tiledblend.compose.lazy import to_dask as to_dask
from tiledblend.containers.ometiff.options import TiffOptions as TiffOptions
from tiledblend.containers.omezarr.spec import OutputSpec as OutputSpec
from tiledblend.containers.verify import verify as verify
from tiledblend.describe.canvas import Canvas as Canvas
from tiledblend.describe.composite import Composite as Composite
from tiledblend.describe.layers import Labels as Labels
from tiledblend.describe.layers import Layer as Layer
from tiledblend.describe.lengths import Feather as Feather
from tiledblend.describe.lengths import Length as Length
from tiledblend.describe.levels import at_level as at_level
from tiledblend.errors import BadInputError as BadInputError
from tiledblend.errors import InterruptedRun as InterruptedRun
from tiledblend.errors import RefusedError as RefusedError
from tiledblend.errors import ResourceError as ResourceError
from tiledblend.errors import StorageError as StorageError
from tiledblend.errors import TiledblendError as TiledblendError
from tiledblend.errors import UsageError as UsageError
from tiledblend.errors import VerificationError as VerificationError
from tiledblend.geometry import Affine as Affine
from tiledblend.geometry import Grid as Grid
from tiledblend.geometry import Region as Region
from tiledblend.look.preview import panel as panel
from tiledblend.look.preview import preview as preview
from tiledblend.run.driver import write as write
from tiledblend.run.ometiff import blend_ometiff as blend_ometiff
from tiledblend.run.ometiff import export_ometiff as export_ometiff
from tiledblend.run.options import ClusterOptions as ClusterOptions
from tiledblend.run.plan import Plan as Plan
from tiledblend.run.plan import plan as plan
from tiledblend.run.report import ProgressEvent as ProgressEvent
from tiledblend.run.report import RunReport as RunReport
from tiledblend.sources import opening as _opening
from tiledblend.sources.arrays import from_array as from_array
from tiledblend.sources.base import Alpha as Alpha
from tiledblend.sources.base import RasterSource as RasterSource
from tiledblend.sources.base import SourceSpec as SourceSpec
from tiledblend.sources.single_colour import from_color as from_color

open = _opening.open_source
__version__: str
__all__: list[str]
