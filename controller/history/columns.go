package history

import (
	"bytes"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/apache/arrow-go/v18/parquet/schema"
)

// version is that of the columns, in each file's metadata under versionKey. Columns are
// only ever added; a new version is one that an old reader would misunderstand.
const (
	version    = "1"
	versionKey = "heliotrope.traffic.version"
)

const rowsPerGroup = 128 << 10

// record is a Row as it is in a file. Empty text is a null.
type record struct {
	windowStart                int64 // µs since 1970, UTC
	windowSeconds              int32
	host                       string
	srcVM, srcPrefix           string
	dstVM, dstPrefix           string
	protocol, port             int32
	reply                      bool
	bytes, bytesLow, bytesHigh int64
	packets, flows             int64
	rtt, rttMin                int64 // µs; 0: none
}

// column is one column of a file, and where a record has it.
type column struct {
	node  schema.Node
	write func(file.ColumnChunkWriter, []record) error
	read  func(file.ColumnChunkReader, []record) error
}

var micros = schema.NewTimestampLogicalType(true, schema.TimeUnitMicros)

var columns = []column{
	int64s("window_start", micros, func(r *record) *int64 { return &r.windowStart }),
	int32s("window_seconds", schema.NewIntLogicalType(32, true), func(r *record) *int32 { return &r.windowSeconds }),
	texts("host", func(r *record) *string { return &r.host }),
	texts("src_vm", func(r *record) *string { return &r.srcVM }),
	texts("src_prefix", func(r *record) *string { return &r.srcPrefix }),
	texts("dst_vm", func(r *record) *string { return &r.dstVM }),
	texts("dst_prefix", func(r *record) *string { return &r.dstPrefix }),
	int32s("protocol", schema.NewIntLogicalType(8, false), func(r *record) *int32 { return &r.protocol }),
	int32s("port", schema.NewIntLogicalType(16, false), func(r *record) *int32 { return &r.port }),
	bools("reply", func(r *record) *bool { return &r.reply }),
	int64s("bytes", whole, func(r *record) *int64 { return &r.bytes }),
	int64s("bytes_low", whole, func(r *record) *int64 { return &r.bytesLow }),
	int64s("bytes_high", whole, func(r *record) *int64 { return &r.bytesHigh }),
	int64s("packets", whole, func(r *record) *int64 { return &r.packets }),
	int64s("flows", whole, func(r *record) *int64 { return &r.flows }),
	int64s("rtt_us", whole, func(r *record) *int64 { return &r.rtt }),
	int64s("rtt_min_us", whole, func(r *record) *int64 { return &r.rttMin }),
}

var whole = schema.NewIntLogicalType(64, true)

func int64s(name string, logical schema.LogicalType, at func(*record) *int64) column {
	return numbers(name, parquet.Repetitions.Required, logical, parquet.Types.Int64, at,
		func(w *file.Int64ColumnChunkWriter, v []int64) error { _, err := w.WriteBatch(v, nil, nil); return err },
		(*file.Int64ColumnChunkReader).ReadBatch)
}

func int32s(name string, logical schema.LogicalType, at func(*record) *int32) column {
	return numbers(name, parquet.Repetitions.Required, logical, parquet.Types.Int32, at,
		func(w *file.Int32ColumnChunkWriter, v []int32) error { _, err := w.WriteBatch(v, nil, nil); return err },
		(*file.Int32ColumnChunkReader).ReadBatch)
}

func bools(name string, at func(*record) *bool) column {
	return numbers(name, parquet.Repetitions.Required, schema.NoLogicalType{}, parquet.Types.Boolean, at,
		func(w *file.BooleanColumnChunkWriter, v []bool) error {
			_, err := w.WriteBatch(v, nil, nil)
			return err
		},
		(*file.BooleanColumnChunkReader).ReadBatch)
}

func node(name string, repetition parquet.Repetition, logical schema.LogicalType, kind parquet.Type) schema.Node {
	n, err := schema.NewPrimitiveNodeLogical(name, repetition, logical, kind, -1, -1)
	if err != nil {
		panic(err) // the table above is wrong
	}
	return n
}

// numbers makes a column of a type that is the same in a record and in a file.
func numbers[T any, W file.ColumnChunkWriter, R file.ColumnChunkReader](
	name string, repetition parquet.Repetition, logical schema.LogicalType, kind parquet.Type, at func(*record) *T,
	write func(W, []T) error, read func(R, int64, []T, []int16, []int16) (int64, int, error),
) column {
	return column{
		node: node(name, repetition, logical, kind),
		write: func(w file.ColumnChunkWriter, records []record) error {
			values := make([]T, len(records))
			for i := range records {
				values[i] = *at(&records[i])
			}
			return write(w.(W), values)
		},
		read: func(r file.ColumnChunkReader, records []record) error {
			c, ok := r.(R)
			if !ok {
				return fmt.Errorf("column %s has another type", name)
			}
			values := make([]T, len(records))
			for done := 0; done < len(records); {
				_, n, err := read(c, int64(len(records)-done), values[done:], nil, nil)
				if err != nil {
					return err
				}
				if n == 0 {
					return io.ErrUnexpectedEOF
				}
				done += n
			}
			for i := range records {
				*at(&records[i]) = values[i]
			}
			return nil
		},
	}
}

// texts makes a column of UTF-8, null where a record has none.
func texts(name string, at func(*record) *string) column {
	return column{
		node: node(name, parquet.Repetitions.Optional, schema.StringLogicalType{}, parquet.Types.ByteArray),
		write: func(w file.ColumnChunkWriter, records []record) error {
			values, levels := make([]parquet.ByteArray, 0, len(records)), make([]int16, len(records))
			for i := range records {
				if s := *at(&records[i]); s != "" {
					values, levels[i] = append(values, parquet.ByteArray(s)), 1
				}
			}
			_, err := w.(*file.ByteArrayColumnChunkWriter).WriteBatch(values, levels, nil)
			return err
		},
		read: func(r file.ColumnChunkReader, records []record) error {
			c, ok := r.(*file.ByteArrayColumnChunkReader)
			if !ok {
				return fmt.Errorf("column %s has another type", name)
			}
			known := map[string]string{} // values repeat
			values, levels := make([]parquet.ByteArray, len(records)), make([]int16, len(records))
			for done := 0; done < len(records); {
				n, _, err := c.ReadBatch(int64(len(records)-done), values, levels, nil)
				if err != nil {
					return err
				}
				if n == 0 {
					return io.ErrUnexpectedEOF
				}
				next := 0
				for i := range int(n) {
					if levels[i] == 0 {
						continue
					}
					s, ok := known[string(values[next])]
					if !ok {
						s = string(values[next])
						known[s] = s
					}
					*at(&records[done+i]) = s
					next++
				}
				done += int(n)
			}
			return nil
		},
	}
}

// encode makes a Parquet file of records.
func encode(w io.Writer, records []record, controller string) error {
	nodes := make(schema.FieldList, len(columns))
	for i, c := range columns {
		nodes[i] = c.node
	}
	root, err := schema.NewGroupNode("traffic", parquet.Repetitions.Required, nodes, -1)
	if err != nil {
		return err
	}
	about := metadata.NewKeyValueMetadata()
	for _, kv := range [][2]string{{versionKey, version}, {"heliotrope.controller", controller}} {
		if err := about.Append(kv[0], kv[1]); err != nil {
			return err
		}
	}
	f, err := file.NewParquetWriterWithError(w, root, file.WithWriteMetadata(about), file.WithWriterProps(parquet.NewWriterProperties(
		parquet.WithCompression(compress.Codecs.Zstd), parquet.WithDictionaryDefault(true), parquet.WithCreatedBy("heliotrope"))))
	if err != nil {
		return err
	}
	for first := 0; first < len(records); first += rowsPerGroup {
		if err := encodeGroup(f, records[first:min(first+rowsPerGroup, len(records))]); err != nil {
			return err
		}
	}
	return f.Close()
}

func encodeGroup(f *file.Writer, records []record) error {
	group, err := f.AppendRowGroupChecked()
	if err != nil {
		return err
	}
	for _, c := range columns {
		w, err := group.NextColumn()
		if err != nil {
			return err
		}
		if err := c.write(w, records); err != nil {
			return fmt.Errorf("write column %s: %w", c.node.Name(), err)
		}
		if err := w.Close(); err != nil {
			return fmt.Errorf("write column %s: %w", c.node.Name(), err)
		}
	}
	return group.Close()
}

// decode calls do with the records of each row group. Columns that the file does not have
// are left zero. The library panics on some files that are broken.
func decode(data []byte, do func([]record) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("is broken: %v", p)
		}
	}()
	f, err := file.NewParquetReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer f.Close()
	if about := f.MetaData().KeyValueMetadata(); about == nil || about.FindValue(versionKey) == nil || *about.FindValue(versionKey) != version {
		return fmt.Errorf("is not of version %s of traffic files", version)
	}
	for g := range f.NumRowGroups() {
		group := f.RowGroup(g)
		if n := group.NumRows(); n < 0 || n > rowsPerGroup {
			return fmt.Errorf("has a group of %d rows", n)
		}
		records := make([]record, group.NumRows())
		for _, c := range columns {
			i := f.MetaData().Schema.ColumnIndexByName(c.node.Name())
			if i < 0 {
				continue
			}
			r, err := group.Column(i)
			if err != nil {
				return err
			}
			if err := c.read(r, records); err != nil {
				return fmt.Errorf("read column %s: %w", c.node.Name(), err)
			}
		}
		if err := do(records); err != nil {
			return err
		}
	}
	return nil
}
