package ovsdb

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"
)

const (
	maxMessage = 16 << 20 // bytes of one JSON-RPC message from a host; a thousand ports take 2 MB
	maxDepth   = 64       // of nesting; OVSDB needs ten
)

// A guard reads what a host sends. A host may be taken over, and libovsdb crashes the whole
// process on some messages, `{}` among them; so the guard lets pass only whole messages of
// bounded size that have been decoded once without a crash. Updates of the monitor it keeps
// for itself: they only say that something changed, and what did is read anew.
type guard struct {
	r       *bufio.Reader
	changed func()
}

// copyTo passes messages on to w until the host or w closes.
func (g *guard) copyTo(w io.Writer) error {
	for {
		msg, err := nextMessage(g.r)
		if err != nil {
			return err
		}
		pass, err := inspect(msg)
		if err != nil {
			return fmt.Errorf("refuse message of host: %w", err)
		}
		if !pass {
			g.changed()
			continue
		}
		if _, err := w.Write(msg); err != nil {
			return fmt.Errorf("pass on message of host: %w", err)
		}
	}
}

// nextMessage returns the next JSON object of r, not yet checked beyond its braces.
func nextMessage(r *bufio.Reader) ([]byte, error) {
	var msg []byte
	depth, inString, escaped := 0, false, false
	for {
		c, err := r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) && len(msg) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if len(msg) == 0 {
			if c == ' ' || c == '\t' || c == '\r' || c == '\n' {
				continue
			}
			if c != '{' {
				return nil, fmt.Errorf("read message of host: it starts with %q, not {", c)
			}
		}
		if msg = append(msg, c); len(msg) > maxMessage {
			return nil, fmt.Errorf("read message of host: longer than %d bytes", maxMessage)
		}
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = c == '\\', c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return nil, fmt.Errorf("read message of host: nested deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return msg, nil
			}
		}
	}
}

// inspect says whether a message may reach libovsdb; an update may not, and is no error.
func inspect(msg []byte) (pass bool, err error) {
	var m struct {
		Method string          `json:"method"`
		Params json.RawMessage `json:"params"`
		ID     json.RawMessage `json:"id"`
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(msg, &m); err != nil {
		return false, fmt.Errorf("decode message: %w", err)
	}
	switch m.Method {
	case "update", "update2", "update3":
		return false, nil
	case "echo":
		var params []any
		if isNull(m.ID) || json.Unmarshal(m.Params, &params) != nil || params == nil {
			return false, errors.New("echo without id or parameters")
		}
		return true, nil
	case "":
	default:
		return false, fmt.Errorf("method %.40q is no client's", m.Method)
	}
	var id uint64
	if isNull(m.ID) || json.Unmarshal(m.ID, &id) != nil {
		return false, fmt.Errorf("id %.40q of answer is not ours", m.ID)
	}
	if !isNull(m.Error) {
		return false, fmt.Errorf("ovsdb-server answers with error %.200s", m.Error)
	}
	if isNull(m.Result) {
		return false, errors.New("answer without result")
	}
	return true, rehearse(m.Result)
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// rehearse decodes a result the way libovsdb will, where a panic does no harm. An error of
// decoding is left for libovsdb to report.
func rehearse(result []byte) (err error) {
	defer recovered(&err)
	if bytes.HasPrefix(bytes.TrimSpace(result), []byte("[")) {
		var ops []libovsdb.OperationResult
		_ = json.Unmarshal(result, &ops)
		return nil
	}
	var schema libovsdb.DatabaseSchema
	_ = json.Unmarshal(result, &schema)
	var updates libovsdb.TableUpdates2
	_ = json.Unmarshal(result, &updates)
	return nil
}

// recovered turns a panic over a host's values into an error.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("decode values of host: %v", p)
	}
}
