package revocation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// cloud answers as the three metadata services do, to who asks as they want it.
func cloud(t *testing.T, answers map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := map[string]bool{
			"/latest/api/token":                      r.Method == http.MethodPut && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "",
			"/latest/meta-data/spot/instance-action": r.Header.Get("X-aws-ec2-metadata-token") == "secret",
			"/computeMetadata/v1/instance/preempted": r.Header.Get("Metadata-Flavor") == "Google",
			"/metadata/scheduledevents":              r.Header.Get("Metadata") == "true" && r.URL.Query().Get("api-version") != "",
		}
		text, ok := answers[r.URL.Path]
		switch {
		case !allowed[r.URL.Path]:
			http.Error(w, "no", http.StatusForbidden)
		case r.URL.Path == "/latest/api/token":
			fmt.Fprint(w, "secret")
		case !ok:
			http.NotFound(w, r)
		default:
			fmt.Fprint(w, text)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

const (
	awsPath   = "/latest/meta-data/spot/instance-action"
	gcpPath   = "/computeMetadata/v1/instance/preempted"
	azurePath = "/metadata/scheduledevents"
)

// What each cloud documents as an answer is understood; what is none is an error or no
// notice, and never one.
func TestClouds(t *testing.T) {
	at := time.Date(2017, 9, 18, 8, 22, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		open    func(string) Source
		path    string
		answer  string
		want    Notice
		given   bool
		failing bool
	}{
		"aws":              {aws, awsPath, `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`, Notice{at, "AWS: spot instance action terminate"}, true, false},
		"aws, none":        {aws, "", "", Notice{}, false, false},
		"aws, garbage":     {aws, awsPath, `<html>`, Notice{}, false, true},
		"gcp":              {gcp, gcpPath, "TRUE", Notice{Reason: "GCP: preempted"}, true, false},
		"gcp, none":        {gcp, gcpPath, "FALSE", Notice{}, false, false},
		"gcp, not there":   {gcp, "", "", Notice{}, false, true},
		"azure":            {azure, azurePath, `{"DocumentIncarnation": 1, "Events": [{"EventId": "A", "EventStatus": "Scheduled", "EventType": "Freeze", "NotBefore": ""}, {"EventId": "B", "EventStatus": "Scheduled", "EventType": "Preempt", "NotBefore": "Mon, 18 Sep 2017 08:22:00 GMT"}]}`, Notice{at, "Azure: Preempt"}, true, false},
		"azure, begun":     {azure, azurePath, `{"Events": [{"EventType": "Terminate", "NotBefore": ""}]}`, Notice{Reason: "Azure: Terminate"}, true, false},
		"azure, none":      {azure, azurePath, `{"DocumentIncarnation": 0, "Events": []}`, Notice{}, false, false},
		"azure, truncated": {azure, azurePath, `{"Events": [{"EventType": "Pree`, Notice{}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			answers := map[string]string{}
			if c.path != "" {
				answers[c.path] = c.answer
			}
			n, given, err := c.open(cloud(t, answers))(t.Context())
			if strings.HasPrefix(name, "gcp") && given { // it does not say when; half a minute is what it gives
				if left := time.Until(n.At); left < 20*time.Second || left > 30*time.Second {
					t.Errorf("%v are left", left)
				}
				n.At = time.Time{}
			}
			if !n.At.Equal(c.want.At) || n.Reason != c.want.Reason || given != c.given || (err != nil) != c.failing {
				t.Errorf("got %+v, %t, %v", n, given, err)
			}
		})
	}
}

// A file and a program say when and why, or only one of the two.
func TestFileAndProgram(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notice")
	script := filepath.Join(dir, "notice.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ ! -e "+path+" ] || cat "+path+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		text string
		want Notice
	}{
		{"2026-11-28T12:00:00Z taken by the provider\nmore", Notice{at, "taken by the provider"}},
		{"2026-11-28T13:00:00+01:00", Notice{at, ""}},
		{"soon \x1b[31m", Notice{Reason: "soon [31m"}},
	} {
		for _, name := range []string{"file:" + path, "exec:" + script} {
			s, err := Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if n, given, err := s(t.Context()); given || err != nil {
				t.Errorf("%s without a notice: %+v, %v", name, n, err)
			}
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if n, given, err := s(t.Context()); !given || err != nil || !n.At.Equal(c.want.At) || n.Reason != c.want.Reason {
				t.Errorf("%s of %q: %+v, %t, %v", name, c.text, n, given, err)
			}
		}
	}
	for _, name := range []string{"", "none", "file:", "exec:", "aws:x"} {
		if _, err := Open(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// What changes is told, once; that a source fails changes nothing.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type answer struct {
			n     Notice
			given bool
			err   error
		}
		first, second := Notice{Reason: "a"}, Notice{Reason: "b"}
		answers := []answer{{}, {first, true, nil}, {first, true, nil}, {err: errors.New("busy")}, {first, true, nil}, {second, true, nil}, {}, {}}
		ctx, cancel := context.WithCancel(t.Context())
		var told []string
		failures := 0
		err := Watch(ctx, func(context.Context) (Notice, bool, error) {
			if len(answers) == 0 {
				cancel()
				return Notice{}, false, nil
			}
			a := answers[0]
			answers = answers[1:]
			return a.n, a.given, a.err
		}, time.Second, func(n *Notice) {
			if n == nil {
				told = append(told, "-")
			} else {
				told = append(told, n.Reason)
			}
		}, func(error) { failures++ })
		if !errors.Is(err, context.Canceled) || !slices.Equal(told, []string{"a", "b", "-"}) || failures != 1 {
			t.Errorf("told %v, %d failures, %v", told, failures, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("2026-11-28T12:00:00Z taken by the provider\nmore")
	f.Add("soon")
	f.Fuzz(func(t *testing.T, text string) {
		n := parse(text)
		if len(n.Reason) > 120 || strings.ContainsFunc(n.Reason, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: %+v", text, n)
		}
	})
}
