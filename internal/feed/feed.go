// Package feed reads what somebody else keeps up to date: a file, a program's output, or
// the answer of a web server. What is read is bounded, and is nothing but bytes.
package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Source reads what there is now; nil bytes and no error: there is nothing.
type Source func(ctx context.Context) ([]byte, error)

const (
	// Most is how many bytes of an answer are read. More is an error.
	Most = 1 << 20

	patience = 10 * time.Second // for one reading
)

// Kinds are what Open takes, for people.
const Kinds = "file:PATH, exec:PROGRAM or an http or https URL"

// Open returns the source of a name: file:PATH, where a file that is not there is nothing;
// exec:PROGRAM, which is run without arguments and prints it; or a URL, where 404 is nothing.
func Open(name string) (Source, error) {
	kind, arg, _ := strings.Cut(name, ":")
	var s Source
	switch {
	case kind == "file" && arg != "":
		s = file(arg)
	case kind == "exec" && arg != "":
		s = program(arg)
	case (kind == "http" || kind == "https") && strings.HasPrefix(arg, "//"):
		s = web(name)
	default:
		return nil, fmt.Errorf("open feed: %q is not known: write %s", name, Kinds)
	}
	return func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return s(ctx)
	}, nil
}

var errLarge = fmt.Errorf("it is larger than %d bytes", Most)

func bounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, Most+1))
	if err == nil && len(data) > Most {
		err = errLarge
	}
	return data, err
}

func file(path string) Source {
	return func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read feed: %w", err)
		}
		defer f.Close()
		data, err := bounded(f)
		if err != nil {
			return nil, fmt.Errorf("read feed %s: %w", path, err)
		}
		return append([]byte{}, data...), nil
	}
}

func program(path string) Source {
	return func(ctx context.Context) ([]byte, error) {
		cmd := exec.CommandContext(ctx, path)
		var out bytes.Buffer
		cmd.Stdout = &limited{&out}
		cmd.WaitDelay = time.Second
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("run %s: %w", path, err)
		}
		if out.Len() > Most {
			return nil, fmt.Errorf("run %s: %w", path, errLarge)
		}
		return out.Bytes(), nil
	}
}

// limited keeps enough to see that there is too much.
type limited struct{ *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := Most + 1 - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func web(url string) Source {
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, fmt.Errorf("read feed: %w", err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, fmt.Errorf("read feed: %w", err)
		}
		defer resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusNotFound:
			return nil, nil
		case resp.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("read feed: the server answers %s", resp.Status)
		}
		data, err := bounded(resp.Body)
		if err != nil {
			return nil, fmt.Errorf("read feed: %w", err)
		}
		return data, nil
	}
}
