package images

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

// What would come is said for each host and in all, for people and for programs.
func TestForecastIsShown(t *testing.T) {
	places := []api.ImagePlace{
		{Host: "asia-1", Site: "asia", State: api.PlaceAbsent, ContentBytes: 16 << 20, MissingBytes: 16 << 20, WireBytes: 9_000_000, ETAS: 1.5, CostUSD: 0.0125},
		{Host: "us-1", Site: "us", State: api.PlaceHere, HereBytes: 16 << 20, ContentBytes: 16 << 20},
	}
	var said bytes.Buffer
	if err := showForecast(output.New("table", &said, &said), places); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(said.String()), " ")
	for _, want := range []string{"asia asia-1 absent 16.8 MB 9.0 MB 1.5 s 0.0125 USD -", "us us-1 here - - - - -", "in all 9.0 MB would come from the store, for 0.0125 USD"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	said.Reset()
	var got []api.ImagePlace
	if err := showForecast(output.New("json", &said, &said), places); err != nil || json.Unmarshal(said.Bytes(), &got) != nil || len(got) != 2 || got[0] != places[0] {
		t.Errorf("got %s, %v", &said, err)
	}
}

// A site of which all hosts wait says why; one of which somebody does not shows how far that has come.
func TestBarSaysWhyNothingComes(t *testing.T) {
	places := []api.ImagePlace{
		{Host: "asia-1", Site: "asia", State: api.PlaceWaits, HereBytes: 4 << 20, ContentBytes: 16 << 20, Note: "shop@3 goes first over eu-asia"},
		{Host: "asia-2", Site: "asia", State: api.PlaceWaits, ContentBytes: 16 << 20, Note: "shop@3 goes first over eu-asia"},
		{Host: "us-1", Site: "us", State: api.PlaceComing, HereBytes: 8 << 20, ContentBytes: 16 << 20},
		{Host: "us-2", Site: "us", State: api.PlaceWaits, ContentBytes: 16 << 20, Note: "it waits for its window"},
	}
	var said bytes.Buffer
	bar := siteBar{out: output.New("table", &said, &said)}
	bar.update(places)
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], "0 of 2 hosts; waits: shop@3 goes first over eu-asia") || !strings.HasSuffix(lines[1], "0 of 2 hosts") {
		t.Errorf("it says %q", lines)
	}
	if !coming([]api.ImagePlace{places[0]}) {
		t.Error("what waits is not waited for")
	}
}
