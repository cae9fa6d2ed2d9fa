"""A GGUF file with its matrices in another type. Run as a script: IN OUT f32|f16|q8_0."""

import sys
from pathlib import Path

import gguf
from gguf.quants import dequantize as to_float
from gguf.quants import quantize


def dequantize(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Same metadata and names; every tensor of two dimensions becomes `kind`, the others stay f32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        values = to_float(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 2:
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


if __name__ == "__main__":
    dequantize(Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3].upper()])
