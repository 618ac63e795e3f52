"""What clients send: the body of every request that is JSON.

null means "not given"; in an update it means "clear this", and `model_fields_set` tells null from
absent. `normal...()` give what is stored and answered: plain JSON with the original's defaults.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from threadmill.schemas.parse import BRANCH, Shape, invalid, missing, refusal, wrong_type

Json = dict[str, Any]

METADATA_MAX_PAIRS = 16
METADATA_KEY_MAX_CHARACTERS = 64
MESSAGE_MAX_CHARACTERS = 256_000
MESSAGE_MAX_IMAGES = 10
# The original's limit is not known. All of them are written in one transaction.
ADDITIONAL_MESSAGES_MAX = 1000
# 512 kB. Counted in characters: a client sees its own string refused at a length it can count.
TOOL_OUTPUT_MAX_CHARACTERS = 512 * 1024
POSTGRES_INTEGER_MAX = 2**31 - 1
ATTRIBUTE_MAX_CHARACTERS = 512
BATCH_MAX_FILES = 2000
# Of a search. Not known of the original, except that filters may be nested.
QUERY_MAX_CHARACTERS = 4096
QUERIES_MAX = 20
FILTER_MAX_LEVELS = 10
FILTER_MAX_CONDITIONS = 200
FILTER_MAX_VALUES = 1000  # of one `in` or `nin`
UPLOAD_MAX_BYTES = 8 * 1024**3
UPLOAD_MAX_PARTS = 10_000
WEB_ADDRESS = re.compile(r"https?://[^\s/]\S*", re.IGNORECASE)


# --- values ---


def _whole(sent: Any) -> Any:
    """1.0 is an integer in JSON. Beyond 64 bits no float is taken for one."""
    if type(sent) is float and sent.is_integer() and abs(sent) < 2**63:
        return int(sent)
    return sent


def _expect(expected: str, *types: type) -> BeforeValidator:
    def check(sent: Any) -> Any:
        if type(sent) not in types:
            raise wrong_type(expected, sent)
        return sent

    return BeforeValidator(check)


def _check_metadata_size(sent: Any) -> Any:
    if not isinstance(sent, dict):
        return sent
    if len(sent) > METADATA_MAX_PAIRS:
        raise refusal(
            "object_above_max_properties",
            "Invalid '{path}': too many properties. Expected an object with at most {limit} "
            "properties, but got an object with {count} properties instead.",
            limit=METADATA_MAX_PAIRS,
            count=len(sent),
        )
    for name in sent:
        if len(name) > METADATA_KEY_MAX_CHARACTERS:
            raise refusal(
                "property_name_above_max_length",
                "Invalid property name in '{parent}': '{start}...{end}' is too long. Expected a "
                "string with maximum length {limit}, but got a string with length {count} instead.",
                at=(name,),
                start=_printable(name[:3]),
                end=_printable(name[-3:]),
                limit=METADATA_KEY_MAX_CHARACTERS,
                count=len(name),
            )
    return sent


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _check_web_address(sent: str) -> str:
    if not WEB_ADDRESS.fullmatch(sent):
        raise refusal(
            "invalid_value",
            "Invalid '{path}'. Expected a valid URL, but got a value with an invalid format.",
        )
    return sent


def _text_or_other(sent: Any) -> str:
    """The branch of a union, by JSON type alone, so that only that branch's faults are told."""
    return BRANCH + "text" if isinstance(sent, str) else BRANCH + "other"


_BY_TYPE = Discriminator(_text_or_other)
_AS_TEXT = Tag(BRANCH + "text")
_AS_OTHER = Tag(BRANCH + "other")

Text = Annotated[str, Field(min_length=1)]
Instructions = Annotated[str, Field(max_length=256_000)]
MessageText = Annotated[str, Field(min_length=1, max_length=MESSAGE_MAX_CHARACTERS)]
FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
WebAddress = Annotated[str, AfterValidator(_check_web_address)]
Whole = Annotated[int, BeforeValidator(_whole)]
# The schema wants token limits >= 256; the original took less.
PositiveWhole = Annotated[Whole, Field(ge=1, le=POSTGRES_INTEGER_MAX)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Metadata = Annotated[
    dict[str, Annotated[str, Field(max_length=512)]], BeforeValidator(_check_metadata_size)
]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

_STRINGS = _expect("an array of strings", list)
_OBJECTS = _expect("an array of objects", list)


class Kind(Shape):
    """An object of several kinds: `type` says which, and a field with the name of one kind belongs
    to that kind alone."""

    needs_no_field: ClassVar[frozenset[str]] = frozenset()

    type: str

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> "Kind":
        for name in type(self).model_fields:
            if name == "type":
                continue
            given = getattr(self, name) is not None
            if given and name != self.type:
                raise refusal("unknown_parameter", "Unknown parameter: '{path}'.", at=(name,))
            if not given and name == self.type and name not in self.needs_no_field:
                raise missing(name)
        return self


# --- tools ---


class HybridSearch(Shape):
    embedding_weight: Annotated[float, Field(ge=0)]
    text_weight: Annotated[float, Field(ge=0)]


class RankingOptions(Shape):
    ranker: Literal["auto", "default_2024_08_21"] | None = None
    score_threshold: Share | None = None
    hybrid_search: HybridSearch | None = None

    def normal(self) -> Json:
        return {
            "ranker": self.ranker or "default_2024_08_21",
            "score_threshold": self.score_threshold or 0.0,
            "hybrid_search": self.hybrid_search and self.hybrid_search.model_dump(),
        }


class FileSearch(Shape):
    max_num_results: Annotated[Whole, Field(ge=1, le=50)] | None = None
    ranking_options: RankingOptions | None = None

    def normal(self) -> Json:
        ranking = self.ranking_options or RankingOptions()
        normal: Json = {"ranking_options": ranking.normal()}
        if self.max_num_results is not None:
            normal = {"max_num_results": self.max_num_results} | normal
        return normal


class Function(Shape):
    name: FunctionName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None

    def normal(self) -> Json:
        normal: Json = {"name": self.name}
        if self.description is not None:
            normal["description"] = self.description
        if self.parameters is None:
            normal["parameters"] = {"type": "object", "properties": {}}
        else:
            normal["parameters"] = self.parameters
        normal["strict"] = bool(self.strict)
        return normal


class Tool(Kind):
    needs_no_field = frozenset({"file_search"})

    type: Literal["code_interpreter", "file_search", "function"]
    file_search: FileSearch | None = None
    function: Function | None = None

    def normal(self) -> Json:
        if self.function is not None:
            return {"type": "function", "function": self.function.normal()}
        if self.type == "file_search":
            search = self.file_search or FileSearch()
            return {"type": "file_search", "file_search": search.normal()}
        return {"type": self.type}


def _check_distinct_names(tools: list[Tool]) -> list[Tool]:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function is None:
            continue
        if tool.function.name in names:
            reason = "another function has the name '{name}'. Function names must be unique."
            raise invalid(reason, index, "function", "name", name=tool.function.name)
        names.add(tool.function.name)
    return tools


_DISTINCT_NAMES = AfterValidator(_check_distinct_names)
AssistantTools = Annotated[
    list[Tool], Field(max_length=128, fail_fast=True), _DISTINCT_NAMES, _OBJECTS
]
RunTools = Annotated[list[Tool], Field(max_length=20, fail_fast=True), _DISTINCT_NAMES, _OBJECTS]


class NamedFunction(Shape):
    name: FunctionName


class NamedTool(Kind):
    type: Literal["function", "code_interpreter", "file_search"]
    function: NamedFunction | None = None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], _AS_TEXT] | Annotated[NamedTool, _AS_OTHER],
    _BY_TYPE,
    # The wording is the original's.
    _expect("one of one of 'none', 'auto', or 'required' or object", str, dict),
]


def names_missing_tool(tool_choice: str | Json, tools: list[Json]) -> bool:
    """Whether the choice forces a tool that is not among `tools`. Both in normal form."""
    if isinstance(tool_choice, str):
        return False
    if tool_choice["type"] != "function":
        return all(tool["type"] != tool_choice["type"] for tool in tools)
    functions = (tool["function"]["name"] for tool in tools if tool["type"] == "function")
    return tool_choice["function"]["name"] not in functions


# --- tool resources ---


class StaticChunking(Shape):
    max_chunk_size_tokens: Annotated[Whole, Field(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[Whole, Field(ge=0)]

    @model_validator(mode="after")
    def _check_overlap(self) -> "StaticChunking":
        limit = self.max_chunk_size_tokens // 2
        if self.chunk_overlap_tokens > limit:
            raise refusal(
                "integer_above_max_value",
                "Invalid '{path}': integer above maximum value. Expected a value <= {limit}, but "
                "got {sent} instead.",
                at=("chunk_overlap_tokens",),
                limit=limit,
                sent=self.chunk_overlap_tokens,
            )
        return self


class ChunkingStrategy(Kind):
    type: Literal["auto", "static"]
    static: StaticChunking | None = None

    def normal(self) -> Json:
        static = self.static or StaticChunking(max_chunk_size_tokens=800, chunk_overlap_tokens=400)
        return {"type": "static", "static": static.model_dump()}


class NewVectorStore(Shape):
    """A vector store that is made along with the assistant or thread it is for."""

    file_ids: Annotated[list[str], Field(max_length=10_000, fail_fast=True), _STRINGS] | None = None
    chunking_strategy: ChunkingStrategy | None = None
    metadata: Metadata | None = None


OneNewVectorStore = Annotated[list[NewVectorStore], Field(max_length=1, fail_fast=True), _OBJECTS]


class CodeInterpreterResources(Shape):
    file_ids: Annotated[list[str], Field(max_length=20, fail_fast=True), _STRINGS] | None = None


class FileSearchResources(Shape):
    vector_store_ids: Annotated[list[str], Field(max_length=1, fail_fast=True), _STRINGS] | None = (
        None
    )


class NewFileSearchResources(FileSearchResources):
    vector_stores: OneNewVectorStore | None = None

    @model_validator(mode="after")
    def _check_one_of_both(self) -> "NewFileSearchResources":
        if self.vector_store_ids and self.vector_stores:
            raise invalid("only one of 'vector_store_ids' and 'vector_stores' can be given.")
        return self


class ToolResources(Shape):
    code_interpreter: CodeInterpreterResources | None = None
    file_search: FileSearchResources | None = None

    def normal(self) -> Json:
        """An entry for each tool that was given; an update leaves the others as they are."""
        normal: Json = {}
        if self.code_interpreter is not None:
            normal["code_interpreter"] = {"file_ids": self.code_interpreter.file_ids or []}
        if self.file_search is not None:
            normal["file_search"] = {"vector_store_ids": self.file_search.vector_store_ids or []}
        return normal


class NewToolResources(ToolResources):
    """At creation a vector store can be asked for instead of named."""

    file_search: NewFileSearchResources | None = None

    @property
    def new_vector_store(self) -> NewVectorStore | None:
        """To be made, and its id put into what `normal` gives."""
        stores = self.file_search and self.file_search.vector_stores
        return stores[0] if stores else None


# --- assistants ---


class JsonSchema(Shape):
    description: str | None = None
    name: FunctionName
    schema_: Json | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormatObject(Kind):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


ResponseFormat = Annotated[
    Annotated[Literal["auto"], _AS_TEXT] | Annotated[ResponseFormatObject, _AS_OTHER],
    _BY_TYPE,
    _expect("one of 'auto' or object", str, dict),
]


def _as_given(value: str | Shape) -> str | Json:
    """Without the fields that were not sent. Names of clients keep their order."""
    return value if isinstance(value, str) else value.model_dump(by_alias=True, exclude_unset=True)


class AssistantFields(Shape):
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=512)] | None = None
    instructions: Instructions | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: AssistantTools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    response_format: ResponseFormat | None = None

    def normal_tools(self) -> list[Json]:
        return [tool.normal() for tool in self.tools or []]

    def normal_tool_resources(self) -> Json:
        return self.tool_resources.normal() if self.tool_resources else {}

    def normal_response_format(self) -> str | Json:
        return _as_given(self.response_format or "auto")


class CreateAssistant(AssistantFields):
    model: Text
    tool_resources: NewToolResources | None = None


class ModifyAssistant(AssistantFields):
    model: Text | None = None


# --- messages ---


class ImageUrl(Shape):
    url: WebAddress
    detail: Literal["auto", "low", "high"] | None = None


class ImageFile(Shape):
    file_id: Text
    detail: Literal["auto", "low", "high"] | None = None


class ContentPart(Kind):
    type: Literal["image_file", "image_url", "text"]
    image_file: ImageFile | None = None
    image_url: ImageUrl | None = None
    text: MessageText | None = None

    def normal(self) -> Json:
        if self.image_file is not None:
            image: Json = {"file_id": self.image_file.file_id}
            return {"type": "image_file", "image_file": image | _detail(self.image_file)}
        if self.image_url is not None:
            image = {"url": self.image_url.url}
            return {"type": "image_url", "image_url": image | _detail(self.image_url)}
        assert self.text is not None  # Kind has seen to it
        return _text_part(self.text)


def _detail(image: ImageFile | ImageUrl) -> Json:
    return {"detail": image.detail or "auto"}


def _text_part(text: str) -> Json:
    return {"type": "text", "text": {"value": text, "annotations": []}}


def _check_image_count(parts: list[ContentPart]) -> list[ContentPart]:
    images = sum(part.type != "text" for part in parts)
    if images > MESSAGE_MAX_IMAGES:
        raise refusal(
            "array_above_max_length",
            "Invalid '{path}': too many images. Expected an array with at most {limit} images, but "
            "got an array with {count} images instead.",
            limit=MESSAGE_MAX_IMAGES,
            count=images,
        )
    return parts


ContentParts = Annotated[
    list[ContentPart], Field(min_length=1, fail_fast=True), AfterValidator(_check_image_count)
]
Content = Annotated[
    Annotated[MessageText, _AS_TEXT] | Annotated[ContentParts, _AS_OTHER],
    _BY_TYPE,
    _expect("one of a string or array of objects", str, list),
]


class AttachmentTool(Shape):
    type: Literal["code_interpreter", "file_search"]


class Attachment(Shape):
    file_id: Text
    tools: Annotated[list[AttachmentTool], Field(fail_fast=True), _OBJECTS]


class CreateMessage(Shape):
    role: Literal["user", "assistant"]
    content: Content
    attachments: Annotated[list[Attachment], Field(fail_fast=True), _OBJECTS] | None = None
    metadata: Metadata | None = None

    def normal_content(self) -> list[Json]:
        if isinstance(self.content, str):
            return [_text_part(self.content)]
        return [part.normal() for part in self.content]

    def normal_attachments(self) -> list[Json]:
        return [attachment.model_dump() for attachment in self.attachments or []]


ThreadMessages = Annotated[list[CreateMessage], Field(max_length=32, fail_fast=True), _OBJECTS]
AdditionalMessages = Annotated[
    list[CreateMessage], Field(max_length=ADDITIONAL_MESSAGES_MAX, fail_fast=True), _OBJECTS
]


class ModifyMessage(Shape):
    metadata: Metadata | None = None


# --- threads ---


class CreateThread(Shape):
    messages: ThreadMessages | None = None
    tool_resources: NewToolResources | None = None
    metadata: Metadata | None = None

    def normal_tool_resources(self) -> Json:
        return self.tool_resources.normal() if self.tool_resources else {}


class ModifyThread(Shape):
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None

    def normal_tool_resources(self) -> Json:
        return self.tool_resources.normal() if self.tool_resources else {}


# --- runs ---


class TruncationStrategy(Shape):
    type: Literal["auto", "last_messages"]
    last_messages: PositiveWhole | None = None

    @model_validator(mode="after")
    def _check_count(self) -> "TruncationStrategy":
        if self.type == "last_messages" and self.last_messages is None:
            raise missing("last_messages")
        return self


class RunFields(Shape):
    assistant_id: Text
    model: Text | None = None
    instructions: Instructions | None = None
    tools: RunTools | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    stream: bool | None = None
    max_prompt_tokens: PositiveWhole | None = None
    max_completion_tokens: PositiveWhole | None = None
    truncation_strategy: TruncationStrategy | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def normal_tools(self) -> list[Json] | None:
        """None: those of the assistant."""
        return None if self.tools is None else [tool.normal() for tool in self.tools]

    def normal_truncation_strategy(self) -> Json:
        return (self.truncation_strategy or TruncationStrategy(type="auto")).model_dump()

    def normal_tool_choice(self) -> str | Json:
        if isinstance(self.tool_choice, NamedTool):
            return self.tool_choice.model_dump(exclude_none=True)
        return self.tool_choice or "auto"

    def normal_parallel_tool_calls(self) -> bool:
        return self.parallel_tool_calls is not False

    def normal_response_format(self) -> str | Json | None:
        """None: that of the assistant."""
        return None if self.response_format is None else _as_given(self.response_format)


class CreateRun(RunFields):
    reasoning_effort: ReasoningEffort | None = None
    additional_instructions: Instructions | None = None
    additional_messages: AdditionalMessages | None = None


class CreateThreadAndRun(RunFields):
    thread: CreateThread | None = None
    tool_resources: ToolResources | None = None

    def normal_tool_resources(self) -> Json:
        return self.tool_resources.normal() if self.tool_resources else {}


class ModifyRun(Shape):
    metadata: Metadata | None = None


class ToolOutput(Shape):
    tool_call_id: Text
    output: Annotated[str, Field(max_length=TOOL_OUTPUT_MAX_CHARACTERS)] | None = None


class SubmitToolOutputs(Shape):
    tool_outputs: Annotated[list[ToolOutput], Field(fail_fast=True), _OBJECTS]
    stream: bool | None = None


# --- vector stores ---


def _check_attributes(sent: Any) -> Any:
    """Texts, numbers and booleans; their number and the names' length are those of metadata."""
    if isinstance(sent, dict):
        for name, value in sent.items():
            if type(value) not in (str, int, float, bool):
                raise wrong_type("one of a string, number or boolean", value, name)
            if isinstance(value, str) and len(value) > ATTRIBUTE_MAX_CHARACTERS:
                raise refusal(
                    "string_above_max_length",
                    "Invalid '{path}': string too long. Expected a string with maximum length "
                    "{limit}, but got a string with length {count} instead.",
                    at=(name,),
                    limit=ATTRIBUTE_MAX_CHARACTERS,
                    count=len(value),
                )
    return sent


Attributes = Annotated[
    Json, BeforeValidator(_check_attributes), BeforeValidator(_check_metadata_size)
]
StoreName = Annotated[str, Field(max_length=256)]


class ExpiresAfter(Shape):
    anchor: Literal["last_active_at"]
    days: Annotated[Whole, Field(ge=1, le=365)]


class SearchSettings(Shape):
    """Ours: how a store is searched."""

    mode: Literal["hybrid", "vector", "text"] | None = None
    language: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    embedding_model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    rerank_url: Annotated[WebAddress, Field(max_length=2048)] | None = None
    rerank_model: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class CreateVectorStore(Shape):
    file_ids: Annotated[list[str], Field(max_length=500, fail_fast=True), _STRINGS] | None = None
    name: StoreName | None = None
    description: Annotated[str, Field(max_length=512)] | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: ChunkingStrategy | None = None
    metadata: Metadata | None = None
    search: SearchSettings | None = None


class ModifyVectorStore(Shape):
    name: StoreName | None = None
    description: Annotated[str, Field(max_length=512)] | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None
    search: SearchSettings | None = None


class CreateVectorStoreFile(Shape):
    file_id: Text
    chunking_strategy: ChunkingStrategy | None = None
    attributes: Attributes | None = None


class ModifyVectorStoreFile(Shape):
    attributes: Attributes | None


class CreateFileBatch(Shape):
    file_ids: (
        Annotated[
            list[str], Field(min_length=1, max_length=BATCH_MAX_FILES, fail_fast=True), _STRINGS
        ]
        | None
    ) = None
    files: (
        Annotated[
            list[CreateVectorStoreFile],
            Field(min_length=1, max_length=BATCH_MAX_FILES, fail_fast=True),
            _OBJECTS,
        ]
        | None
    ) = None
    chunking_strategy: ChunkingStrategy | None = None
    attributes: Attributes | None = None

    @model_validator(mode="after")
    def _check_one_of_both(self) -> "CreateFileBatch":
        if self.file_ids is None and self.files is None:
            raise missing("file_ids")
        if self.file_ids is not None and self.files is not None:
            raise invalid("only one of 'file_ids' and 'files' can be given.", "files")
        return self

    def each(self) -> list[CreateVectorStoreFile]:
        """With `files`, each has settings of its own and the common ones do not count."""
        if self.files is not None:
            return self.files
        return [
            CreateVectorStoreFile.model_construct(
                file_id=file_id,
                chunking_strategy=self.chunking_strategy,
                attributes=self.attributes,
            )
            for file_id in self.file_ids or []
        ]


def normal_chunking(strategy: ChunkingStrategy | None) -> Json:
    return (strategy or ChunkingStrategy(type="auto")).normal()


# --- search ---


def _check_filter_size(sent: Any) -> Any:
    """Before its shape is looked at: a hostile one is refused without following it all the way."""
    level, count = [sent], 0
    for _ in range(FILTER_MAX_LEVELS):
        below = []
        for node in level:
            if isinstance(node, dict) and isinstance(node.get("filters"), list):
                below += node["filters"]
        count += len(level)
        if count > FILTER_MAX_CONDITIONS:
            raise invalid("expected at most {limit} conditions.", limit=FILTER_MAX_CONDITIONS)
        if not below:
            return sent
        level = below
    raise invalid("nested too deeply. Expected at most {limit} levels.", limit=FILTER_MAX_LEVELS)


_COMPOUND = frozenset({"and", "or"})
_ORDERED = frozenset({"gt", "gte", "lt", "lte"})
_OF_LIST = frozenset({"in", "nin"})


class Filter(Shape):
    """A comparison, or several filters put together."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"]
    key: Annotated[str, Field(min_length=1, max_length=METADATA_KEY_MAX_CHARACTERS)] | None = None
    value: Any = None
    filters: Annotated[list["Filter"], Field(min_length=1, fail_fast=True), _OBJECTS] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> "Filter":
        is_compound = self.type in _COMPOUND
        for name, belongs in (
            ("key", not is_compound),
            ("value", not is_compound),
            ("filters", is_compound),
        ):
            given = getattr(self, name) is not None
            if given and not belongs:
                raise refusal("unknown_parameter", "Unknown parameter: '{path}'.", at=(name,))
            if not given and belongs:
                raise missing(name)
        if not is_compound:
            self._check_value()
        return self

    def _check_value(self) -> None:
        if self.type in _OF_LIST:
            self._check_list()
        elif self.type in _ORDERED:
            if type(self.value) not in (str, int, float):
                raise wrong_type("one of a string or number", self.value, "value")
        elif type(self.value) not in (str, int, float, bool):
            raise wrong_type("one of a string, number or boolean", self.value, "value")

    def _check_list(self) -> None:
        if type(self.value) is not list:
            raise wrong_type("an array", self.value, "value")
        if len(self.value) > FILTER_MAX_VALUES:
            raise invalid("expected at most {limit} values.", "value", limit=FILTER_MAX_VALUES)
        for at, one in enumerate(self.value):
            if type(one) not in (str, int, float, bool):
                raise wrong_type("one of a string, number or boolean", one, "value", at)


Filters = Annotated[Filter, BeforeValidator(_check_filter_size)]


def _check_weights(weights: HybridSearch) -> HybridSearch:
    if not weights.embedding_weight and not weights.text_weight:
        raise invalid("one of the weights must be greater than 0.")
    return weights


class SearchRankingOptions(Shape):
    # The original knew no weights here; they are those of the assistants' tool.
    ranker: Literal["none", "auto", "default-2024-11-15", "default_2024_08_21"] | None = None
    score_threshold: Share | None = None
    hybrid_search: Annotated[HybridSearch, AfterValidator(_check_weights)] | None = None


SearchQuery = Annotated[str, Field(min_length=1, max_length=QUERY_MAX_CHARACTERS)]


class SearchVectorStore(Shape):
    query: Annotated[
        Annotated[SearchQuery, _AS_TEXT]
        | Annotated[
            Annotated[
                list[SearchQuery], Field(min_length=1, max_length=QUERIES_MAX, fail_fast=True)
            ],
            _AS_OTHER,
        ],
        _BY_TYPE,
        _expect("one of a string or array of strings", str, list),
    ]
    filters: Filters | None = None
    max_num_results: Annotated[Whole, Field(ge=1, le=50)] | None = None
    ranking_options: SearchRankingOptions | None = None
    # Taken and not acted on: the queries are searched for as they are.
    rewrite_query: bool | None = None

    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query

    def normal_filters(self) -> Json | None:
        return self.filters.model_dump(exclude_none=True) if self.filters else None


# --- uploads ---


def _check_filename(name: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise invalid("the file name contains control characters.")
    return name


class FileExpiresAfter(Shape):
    anchor: Literal["created_at"]
    seconds: Annotated[Whole, Field(ge=3600, le=30 * 24 * 3600)]


class CreateUpload(Shape):
    filename: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_check_filename)]
    purpose: Literal["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
    bytes: Annotated[Whole, Field(ge=1, le=UPLOAD_MAX_BYTES)]
    mime_type: Annotated[str, Field(min_length=1, max_length=256)]
    expires_after: FileExpiresAfter | None = None


class CompleteUpload(Shape):
    part_ids: Annotated[
        list[str], Field(min_length=1, max_length=UPLOAD_MAX_PARTS, fail_fast=True), _STRINGS
    ]
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None


# --- webhooks ---

# Of those that the original's own webhooks had, none fits; named as the events of streams are.
EventType = Literal[
    "thread.run.requires_action",
    "thread.run.completed",
    "thread.run.incomplete",
    "thread.run.failed",
    "thread.run.cancelled",
    "thread.run.expired",
    "vector_store.file.completed",
    "vector_store.file.failed",
    "vector_store.file.cancelled",
]
EVENT_TYPES: list[str] = list(get_args(EventType))
EventTypes = Annotated[
    list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES), fail_fast=True), _STRINGS
]
EndpointName = Annotated[str, Field(min_length=1, max_length=256)]
EndpointUrl = Annotated[WebAddress, Field(max_length=2048)]


class CreateWebhookEndpoint(Shape):
    name: EndpointName
    url: EndpointUrl
    event_types: EventTypes


class ModifyWebhookEndpoint(Shape):
    name: EndpointName | None = None
    url: EndpointUrl | None = None
    event_types: EventTypes | None = None
    status: Literal["enabled", "disabled"] | None = None  # ours


class RotateWebhookSecret(Shape):
    keep_old_secret_active_for_24_hours: bool | None = None


class TestWebhookEndpoint(Shape):
    event_type: EventType
