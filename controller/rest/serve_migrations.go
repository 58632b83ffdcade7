package rest

import (
	"context"
	"io"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/webreport"
)

type (
	migrationRef struct {
		ID heliotrope.MoveID `path:"id"`
	}
	startMigration struct {
		Key  string `header:"Idempotency-Key" doc:"Same key and request: same answer, one migration; for a day."`
		Body api.MigrationRequest
	}
	// started is a Migration that was accepted, or the MigrationPreview of a dry run.
	started struct {
		Status   int
		Location string `header:"Location"`
		Body     any
	}
	migrationFilter struct {
		VM     heliotrope.VMID `query:"vm" doc:"Only those of this VM."`
		Active bool            `query:"active" doc:"Only those that have not ended."`
		Limit  int             `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	}
	waitMigration struct {
		ID    heliotrope.MoveID `path:"id"`
		Wait  bool              `query:"wait" doc:"Answer when its revision is above after, or after 30 s."`
		After int64             `query:"after" minimum:"0" doc:"Revision that the caller has seen."`
		AsPage
	}
)

func (h *handler) registerMigrations(routes huma.API) {
	start := operation("POST", "/v1/migrations", "start-migration", "Move a VM", 400, 404, 409, 415, 422)
	schemas := routes.OpenAPI().Components.Schemas
	start.Responses = map[string]*huma.Response{
		"202": {Description: "The migration, which has begun", Content: map[string]*huma.MediaType{api.MediaJSON: {Schema: schemaOf[api.Migration](schemas)}},
			Headers: map[string]*huma.Param{"Location": {Description: "Where to watch it.", Schema: &huma.Schema{Type: huma.TypeString}}}},
		"200": {Description: "What it would be like (dry_run)", Content: map[string]*huma.MediaType{api.MediaJSON: {Schema: schemaOf[api.MigrationPreview](schemas)}}},
	}
	start.DefaultStatus = http.StatusAccepted
	handle(h, routes, start, h.startMigration)
	handle(h, routes, operation("GET", "/v1/migrations", "list-migrations", "Migrations, newest first", 422), h.listMigrations)
	one := operation("GET", "/v1/migrations/{id}", "get-migration", "One migration, now or when it changed", 404, 422)
	one.Responses = pageOr(schemaOf[api.Migration](schemas))
	handle(h, routes, one, h.getMigration)
	abort := operation("POST", "/v1/migrations/{id}/abort", "abort-migration", "Roll a migration back; 409 once it is committed", 404, 409)
	abort.DefaultStatus = http.StatusAccepted
	handle(h, routes, abort, func(ctx context.Context, in *migrationRef) (*body[api.Migration], error) {
		m, err := h.Migrations.AbortMigration(ctx, in.ID)
		return &body[api.Migration]{m}, err
	})
}

func (h *handler) startMigration(ctx context.Context, in *startMigration) (*started, error) {
	if in.Body.DryRun {
		preview, err := h.Migrations.PreviewMigration(ctx, in.Body)
		return &started{Status: http.StatusOK, Body: preview}, err
	}
	m, err := h.Migrations.StartMigration(ctx, heliotrope.MoveID("m-"+nameOf(ctx, "migration", in.Key)), in.Body)
	if err != nil {
		return nil, err
	}
	if m.VM != in.Body.VM { // a key of more than a day ago
		return nil, &api.Problem{Type: api.TypeKeyReused, Title: "Key used before", Status: http.StatusUnprocessableEntity,
			Detail: "this Idempotency-Key was used to move another VM", Hint: "take a new key for a new request"}
	}
	return &started{Status: http.StatusAccepted, Location: "/v1/migrations/" + string(m.ID), Body: m}, nil
}

func (h *handler) listMigrations(ctx context.Context, in *migrationFilter) (*body[api.List[api.Migration]], error) {
	all, err := h.Migrations.Migrations(ctx)
	all = slices.DeleteFunc(slices.Clone(all), func(m api.Migration) bool {
		return in.VM != "" && m.VM != in.VM || in.Active && m.Ended()
	})
	return listOf(all[:min(len(all), in.Limit)]), err
}

func (h *handler) getMigration(ctx context.Context, in *waitMigration) (*content, error) {
	after := int64(-1)
	if in.Wait {
		after = in.After
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	m, err := h.Migrations.WaitMigration(ctx, in.ID, after)
	if err != nil {
		return nil, err
	}
	return in.answer(m, func(w io.Writer) error { return webreport.RenderMove(w, m) })
}
