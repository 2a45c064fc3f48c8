from tiledblend.cluster import ClusterOptions as ClusterOptions
from tiledblend.composite import Canvas as Canvas
from tiledblend.composite import Composite as Composite
from tiledblend.composite import Feather as Feather
from tiledblend.composite import Labels as Labels
from tiledblend.composite import Layer as Layer
from tiledblend.composite import Length as Length
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
from tiledblend.lazy import blend as blend
from tiledblend.lazy import feather as feather
from tiledblend.lazy import to_array as to_array
from tiledblend.lazy import to_dask as to_dask
from tiledblend.levels import at_level as at_level
from tiledblend.ometiff.blend import blend_ometiff as blend_ometiff
from tiledblend.ometiff.export import export_ometiff as export_ometiff
from tiledblend.ometiff.options import TiffOptions as TiffOptions
from tiledblend.plan import Plan as Plan
from tiledblend.plan import plan as plan
from tiledblend.preview import panel as panel
from tiledblend.preview import preview as preview
from tiledblend.run import ProgressEvent as ProgressEvent
from tiledblend.run import RunReport as RunReport
from tiledblend.run import write as write
from tiledblend.sources import opening as _opening
from tiledblend.sources.array import from_array as from_array
from tiledblend.sources.base import Alpha as Alpha
from tiledblend.sources.base import RasterSource as RasterSource
from tiledblend.sources.base import SourceSpec as SourceSpec
from tiledblend.store.spec import OutputSpec as OutputSpec

open = _opening.open_source
__version__: str
__all__: list[str]
