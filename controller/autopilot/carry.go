package autopilot

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
)

// carry brings every plan that runs a bit farther. What goes wrong once is tried again.
func (a *Autopilot) carry(ctx context.Context) error {
	for _, p := range a.all(func(p api.Plan) bool { return p.State == api.PlanRunning || p.State == api.PlanMeasuring }) {
		var err error
		if p.State == api.PlanRunning {
			err = a.advance(ctx, p)
		} else {
			err = a.measure(ctx, p)
		}
		switch {
		case errors.Is(err, store.ErrStaleTerm):
			return err
		case err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrConflict): // an abort came in between
			a.log.Warn("plan is delayed", "plan", p.ID, "err", err)
		}
	}
	return nil
}

// advance takes in how far the moves are, begins those of the next step, and ends the plan
// after the last.
func (a *Autopilot) advance(ctx context.Context, p api.Plan) error {
	list, err := a.world.Migrations(ctx)
	if err != nil {
		return err
	}
	moves := make(map[heliotrope.MoveID]api.Migration, len(p.Moves))
	for _, m := range list {
		moves[m.ID] = m
	}
	next, begin := step(p, moves)
	for _, i := range begin {
		next.Moves[i], err = a.start(ctx, p, i)
		if err != nil {
			return err
		}
	}
	if p.Aborting {
		for i, m := range next.Moves {
			if m.Phase != "" && moves[m.Migration].CanAbort {
				if _, err := a.world.AbortMigration(ctx, m.Migration); err != nil {
					a.log.Info("move of an aborted plan goes on", "plan", p.ID, "vm", p.Plan.Moves[i].VM, "err", err)
				}
			}
		}
	}
	switch {
	case next.State == api.PlanMeasuring:
		next.MovedAt = time.Now().UTC()
		if next, err = a.save(ctx, next); err == nil {
			a.tell(next, "moved")
		}
	case next.Ended():
		_, err = a.end(ctx, next, next.State, next.Note)
	case !sameMoves(p.Moves, next.Moves):
		_, err = a.save(ctx, next)
	}
	return err
}

// start begins a move. One that cannot be begun has failed.
func (a *Autopilot) start(ctx context.Context, p api.Plan, i int) (api.PlanMove, error) {
	m, out := p.Plan.Moves[i], p.Moves[i]
	_, placements := a.world.Topology()
	if at := placements[m.VM].Host; at != m.From {
		out.Phase, out.Error = api.PhaseFailed, fmt.Sprintf("%s is at %s, not at %s", m.VM, at, m.From)
		return out, nil
	}
	started, err := a.world.StartMigration(ctx, out.Migration, api.MigrationRequest{VM: m.VM, To: string(m.To)})
	var problem *api.Problem
	switch {
	case errors.As(err, &problem) && problem.Status != http.StatusServiceUnavailable:
		out.Phase, out.Error = api.PhaseFailed, problem.Detail
		return out, nil
	case err != nil:
		return out, fmt.Errorf("begin move of %s: %w", m.VM, err)
	}
	out.Phase = started.Phase
	return out, nil
}

// step is the plan as its migrations say, and the moves that are to be begun: those of the
// first step that has any left, once all steps before it have succeeded.
func step(p api.Plan, moves map[heliotrope.MoveID]api.Migration) (next api.Plan, begin []int) {
	next = p
	next.Moves = append([]api.PlanMove{}, p.Moves...)
	var failed []string
	open, done := 0, 0
	current := 0 // the step that is under way
	for i := range next.Moves {
		m := &next.Moves[i]
		if now, ok := moves[m.Migration]; ok {
			m.Phase, m.PauseMs, m.Bytes, m.Error = now.Phase, now.Measured.PauseMs, now.Measured.Bytes, now.Error
		}
		of := p.Plan.Moves[i]
		switch {
		case m.Phase == api.PhaseSucceeded:
			done++
		case ended(m.Phase):
			failed = append(failed, fmt.Sprintf("%s to %s %s: %s", of.VM, of.To, m.Phase, m.Error))
		case current == 0 || of.Step == current:
			current = of.Step
			if m.Phase == "" {
				begin = append(begin, i)
			} else {
				open++
			}
		}
	}
	if len(failed) > 0 || p.Aborting {
		begin = nil
	}
	switch {
	case open+len(begin) > 0:
	case p.Aborting:
		next.State, next.Note = api.PlanAborted, fmt.Sprintf("%d of %d moves were made", done, len(next.Moves))
	case len(failed) > 0:
		next.State, next.Note = api.PlanFailed, fmt.Sprintf("%d of %d moves were made; %s", done, len(next.Moves), failed[0])
	default:
		next.State = api.PlanMeasuring
	}
	return next, begin
}

func ended(phase string) bool { return api.Migration{Phase: phase}.Ended() }

// sameMoves says whether nothing is to be written: how many bytes a move has sent so far is
// not.
func sameMoves(a, b []api.PlanMove) bool {
	for i := range a {
		if a[i].Phase != b[i].Phase || a[i].Error != b[i].Error {
			return false
		}
	}
	return true
}
