// Package revocation hears that a machine is to be taken away: by its cloud's metadata
// service, which spot and preemptible machines are told by, or by a file or a program of
// the operator's own.
//
// A source is asked every few seconds, as the clouds advise. One that cannot be asked is
// no notice; what was noticed stays noticed until the source takes it back.
package revocation

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"heliotrope/internal/feed"
)

// Notice says that the machine goes away.
type Notice struct {
	At     time.Time // zero: nobody says when
	Reason string
}

// Source tells whether there is a notice.
type Source func(ctx context.Context) (n Notice, given bool, err error)

const (
	most    = 64 << 10 // bytes of an answer
	patient = 3 * time.Second

	linkLocal = "http://169.254.169.254"
	google    = "http://metadata.google.internal"
)

// Kinds are what Open takes, for people.
const Kinds = "aws, gcp, azure, " + feed.Kinds

// Open returns the source of a name: aws, gcp and azure are those clouds' metadata
// services; others are feeds (package feed), which give notice while they say something: the
// time in RFC 3339 and, after a space, the reason, either of which may be missing.
func Open(name string) (Source, error) {
	switch name {
	case "aws":
		return aws(linkLocal), nil
	case "gcp":
		return gcp(google), nil
	case "azure":
		return azure(linkLocal), nil
	}
	read, err := feed.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open source of revocations: %q is not known: there are %s", name, Kinds)
	}
	return told(read), nil
}

// Watch asks a source every so often until ctx ends, and calls told when what it says has
// changed: with nil when a notice is taken back. That it cannot be asked is told to failed.
func Watch(ctx context.Context, s Source, every time.Duration, told func(*Notice), failed func(error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before *Notice
	for {
		limited, cancel := context.WithTimeout(ctx, patient)
		n, given, err := s(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			failed(err)
		case given && (before == nil || !before.At.Equal(n.At) || before.Reason != n.Reason):
			before = &n
			told(&n)
		case !given && before != nil:
			before = nil
			told(nil)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// aws is the spot instance action of the instance metadata service, version 2: 404 while
// there is none, two minutes before it is taken.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
func aws(base string) Source {
	return func(ctx context.Context) (Notice, bool, error) {
		token, status, err := ask(ctx, http.MethodPut, base+"/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
		if err != nil || status != http.StatusOK {
			return Notice{}, false, unexpected(status, err)
		}
		text, status, err := ask(ctx, http.MethodGet, base+"/latest/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", string(token))
		if err != nil || status != http.StatusOK {
			if status == http.StatusNotFound {
				return Notice{}, false, nil
			}
			return Notice{}, false, unexpected(status, err)
		}
		var action struct {
			Action string    `json:"action"`
			Time   time.Time `json:"time"`
		}
		if err := json.Unmarshal(text, &action); err != nil {
			return Notice{}, false, fmt.Errorf("read spot instance action: %w", err)
		}
		return Notice{action.Time, "AWS: spot instance action " + plain(action.Action)}, true, nil
	}
}

// gcp says whether a spot VM is preempted, 30 seconds before it is stopped.
// https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
func gcp(base string) Source {
	var since time.Time // it is not said when
	return func(ctx context.Context) (Notice, bool, error) {
		text, status, err := ask(ctx, http.MethodGet, base+"/computeMetadata/v1/instance/preempted", "Metadata-Flavor", "Google")
		if err != nil || status != http.StatusOK {
			return Notice{}, false, unexpected(status, err)
		}
		if !strings.EqualFold(strings.TrimSpace(string(text)), "true") {
			since = time.Time{}
			return Notice{}, false, nil
		}
		if since.IsZero() {
			since = time.Now().UTC()
		}
		return Notice{since.Add(30 * time.Second), "GCP: preempted"}, true, nil
	}
}

// azure reads scheduled events; Preempt, Terminate and Redeploy take the machine away.
// https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
func azure(base string) Source {
	return func(ctx context.Context) (Notice, bool, error) {
		text, status, err := ask(ctx, http.MethodGet, base+"/metadata/scheduledevents?api-version=2020-07-01", "Metadata", "true")
		if err != nil || status != http.StatusOK {
			return Notice{}, false, unexpected(status, err)
		}
		var answer struct {
			Events []struct{ EventType, NotBefore string }
		}
		if err := json.Unmarshal(text, &answer); err != nil {
			return Notice{}, false, fmt.Errorf("read scheduled events: %w", err)
		}
		for _, e := range answer.Events {
			switch e.EventType {
			case "Preempt", "Terminate", "Redeploy":
				at, _ := http.ParseTime(e.NotBefore) // empty once it has begun
				return Notice{at, "Azure: " + e.EventType}, true, nil
			}
		}
		return Notice{}, false, nil
	}
}

// told is what a feed says, while it says something.
func told(read feed.Source) Source {
	return func(ctx context.Context) (Notice, bool, error) {
		text, err := read(ctx)
		if err != nil || len(text) == 0 {
			return Notice{}, false, err
		}
		return parse(string(text)), true, nil
	}
}

// parse reads a time and a reason, either of which may be missing.
func parse(text string) Notice {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	first, rest, _ := strings.Cut(text, " ")
	if at, err := time.Parse(time.RFC3339, first); err == nil {
		return Notice{at.UTC(), plain(rest)}
	}
	return Notice{Reason: plain(text)}
}

// plain is text of somebody else's that can be shown: short, and all of it printable.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(s[:min(len(s), 120)])
}

// ask makes one request to a metadata service, which is link-local: no proxy is between.
func ask(ctx context.Context, method, url, header, value string) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("ask metadata service: %w", err)
	}
	req.Header.Set(header, value)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("ask metadata service: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, 0, fmt.Errorf("ask metadata service: %w", err)
	}
	return text, resp.StatusCode, nil
}

func unexpected(status int, err error) error {
	if err == nil {
		err = fmt.Errorf("ask metadata service: it answers %d %s", status, http.StatusText(status))
	}
	return err
}
