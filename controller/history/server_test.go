package history

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	accessKey = "heliotrope-test"
	secretKey = "not-a-secret"
)

// What the tests' own environment says of clouds must not reach them, nor they a cloud.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": accessKey, "AWS_SECRET_ACCESS_KEY": secretKey, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "",
		"AZURE_STORAGE_ACCOUNT": "", "AZURE_STORAGE_CONNECTION_STRING": "", "AZURE_STORAGE_SAS_TOKEN": "",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// server is a program that make deps installed, which listens on a port of this machine.
type server struct {
	program, address string
	args, env        []string
	cmd              *exec.Cmd
	log              bytes.Buffer // read it when the program has ended
}

// newServer is a server that is not started yet, on a port that is free.
func newServer(t *testing.T, program string) *server {
	t.Helper()
	cache := os.Getenv("HELIOTROPE_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "heliotrope")
	}
	s := &server{program: filepath.Join(cache, "bin", program)}
	if _, err := os.Stat(s.program); err != nil {
		t.Fatalf("%s is missing (make deps installs it): %v", program, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("%s:\n%s", program, s.log.String()[max(0, s.log.Len()-4000):])
		}
	})
	return s
}

// start starts it, again if need be, and waits until it answers.
func (s *server) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command(s.program, s.args...)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, s.program+" answers", func() bool {
		response, err := http.Get("http://" + s.address)
		return err == nil && response.Body.Close() == nil
	})
}

func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // Wait says what there is to say
	_ = s.cmd.Wait()
	s.cmd = nil
}

// stop stops it without ending it. Each of its threads goes on until it is told.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
	until(t, s.program+" stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if _, state, ok := strings.Cut(string(text), ") "); err != nil || !ok || state[0] != 'T' {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
}

func (s *server) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// url is that of a bucket of an S3 server.
func (s *server) url(bucket string) string {
	return fmt.Sprintf("s3://%s?region=us-east-1&endpoint=http://%s", bucket, s.address)
}

// startS3 starts a gateway that speaks S3 and keeps its bucket "lab" in a directory.
func startS3(t *testing.T, flags ...string) *server {
	t.Helper()
	s := newServer(t, "versitygw")
	root, about := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "lab"), 0o750); err != nil {
		t.Fatal(err)
	}
	s.env = []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}
	s.args = append(append([]string{"--port", s.address, "--quiet"}, flags...), "posix", "--sidecar", about, root)
	s.start(t)
	return s
}

// places are where history can be; each has a journal of its own.
var places = map[string]func(*testing.T) (url string){
	"directory": func(t *testing.T) string { return t.TempDir() },
	"file":      func(t *testing.T) string { return "file://" + filepath.Join(t.TempDir(), "new") },
	"s3":        func(t *testing.T) string { return startS3(t).url("lab") },
}

// everywhere runs a test in each place.
func everywhere(t *testing.T, test func(t *testing.T, url, journal string)) {
	t.Helper()
	for name, url := range places {
		t.Run(name, func(t *testing.T) { test(t, url(t), t.TempDir()) })
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
