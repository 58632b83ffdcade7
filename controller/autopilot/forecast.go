package autopilot

import (
	"context"
	"fmt"
	"maps"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/ahead"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/survey"
)

const (
	accountEvery = 5 * time.Minute     // at most: between two looks of a pool that goes by forecasts
	learnFrom    = 28 * 24 * time.Hour // of the history of traffic, where it is kept
	learnAtOnce  = 24                  // hours of it that one look reads
	lateCounts   = time.Minute         // that an hour may take to be counted
)

// seer is what an autopilot knows of a pool that goes by forecasts.
type seer struct {
	demands ahead.Demands
	next    time.Time // hour that is learned next
	books   *ahead.Books
}

// foresee makes the plan of a pool that goes by forecasts: for the demand that is expected
// over its hours, as long as that costs no more than it may, else for that of now. Where
// nobody carries plans out by himself nothing is lost by them, and no books are kept.
func (a *Autopilot) foresee(ctx context.Context, id heliotrope.PoolID, m matter) (scheduler.Plan, string, error) {
	seer, err := a.seer(ctx, id, m)
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	caughtUp, err := a.learn(ctx, seer, m)
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	if !caughtUp {
		seer.books = nil
		plan, says, err := a.decide(ctx, m)
		return plan, says + "; what demand to expect is still being learned", err
	}
	if m.pool.Autopilot != heliotrope.AutopilotAuto {
		allowance, err := a.allowance(ctx, m.pool, m.now)
		if err != nil {
			return scheduler.Plan{}, "", err
		}
		return a.expect(ctx, seer, m, m.s, allowance)
	}
	return a.guarded(ctx, id, seer, m)
}

// seer is that of a pool, with the books that were kept of it.
func (a *Autopilot) seer(ctx context.Context, id heliotrope.PoolID, m matter) (*seer, error) {
	if a.seers[id] != nil {
		return a.seers[id], nil
	}
	b, err := a.records.Books(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read books of forecasts: %w", err)
	}
	a.seers[id] = &seer{next: m.now.Add(-learnFrom).Truncate(ahead.Slot), books: b}
	return a.seers[id], nil
}

// learn takes in the hours that were counted since, a day of them at most, and says whether
// these are all. An hour of the past in which nothing at all was counted was not counted.
func (a *Autopilot) learn(ctx context.Context, s *seer, m matter) (caughtUp bool, err error) {
	for range learnAtOnce {
		end := s.next.Add(ahead.Slot)
		if m.now.Before(end.Add(lateCounts)) {
			return true, nil
		}
		counted, err := a.world.Counted(ctx, end, ahead.Slot)
		if err != nil {
			return false, err
		}
		if len(counted.Cells) > 0 || s.next.After(a.since) {
			was := survey.Take(s.next, m.seen.topology, survey.Facts{Placements: m.seen.placements, Traffic: counted})
			if err := s.demands.Learn(s.next, was.Demands); err != nil {
				return false, fmt.Errorf("learn demand: %w", err)
			}
		}
		s.next = end
	}
	return m.now.Before(s.next.Add(ahead.Slot + lateCounts)), nil
}

// expect is the plan for the demand that is expected, by what is seen.
func (a *Autopilot) expect(ctx context.Context, s *seer, m matter, seen scheduler.Snapshot, allowance pace.Allowance) (scheduler.Plan, string, error) {
	horizon := time.Duration(m.pool.Forecast)
	expected, n := s.demands.Expected(seen, m.now, horizon)
	if n == 0 {
		plan, says, err := a.steady(ctx, m, seen, allowance, a.byWindow(ctx, m))
		return plan, says + "; what demand to expect is not known yet", err
	}
	plan, says, err := a.steady(ctx, m, expected, allowance, judge{but: "not at each end of what is expected", hold: func(seen scheduler.Snapshot, plan *scheduler.Plan) (held []heliotrope.VMID, err error) {
		sure, err := s.demands.Sure(seen, m.policy, *plan, m.now, horizon)
		for _, move := range plan.Moves {
			if move.USDPerHour > 0 && !sure[move.VM] {
				held = append(held, move.VM)
			}
		}
		return held, err
	}})
	return plan, fmt.Sprintf("%s; by the demand expected until %s", says, m.now.Add(horizon).UTC().Format("15:04")), err
}

// guarded has both policies decide on paper, and VMs follow the one that they may.
func (a *Autopilot) guarded(ctx context.Context, id heliotrope.PoolID, s *seer, m matter) (scheduler.Plan, string, error) {
	b, err := a.account(ctx, s, m)
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	decided := map[*ahead.Paper]decision{}
	for _, x := range []*ahead.Paper{&b.Reactive, &b.Predictive} {
		d := decision{here: maps.Equal(x.At, b.Real)}
		seen, allowance := x.Seen(m.s), pace.Pace(m.pool.Pace).Allow(x.Moved, m.now)
		if x == &b.Reactive {
			d.plan, d.says, err = a.steady(ctx, m, seen, allowance, a.byWindow(ctx, m))
		} else {
			d.plan, d.says, err = a.expect(ctx, s, m, seen, allowance)
		}
		if err == nil {
			err = x.Make(m.s, m.policy, d.plan)
		}
		if err != nil {
			return d.plan, "", err
		}
		decided[x] = d
	}
	lost := b.Guard.Lost(m.now)
	follows, err := b.Choose(m.s, m.policy, &s.demands, 2*intervalOf(m.pool))
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	if b.Follows != follows {
		a.world.Tell("pool", string(id), turn(follows, lost, m.pool.ForecastLoss))
	}
	b.Follows = follows
	if err := a.keep(ctx, id, b); err != nil {
		return scheduler.Plan{}, "", err
	}
	follow := &b.Reactive
	if follows {
		follow = &b.Predictive
	}
	d := decided[follow]
	if !d.here {
		d.plan, err = follow.Plan(m.s, m.policy)
		d.plan.Ways, d.plan.Map = survey.Ways(m.s, d.plan), survey.Map(m.s, d.plan)
	}
	if !follows {
		d.says += fmt.Sprintf("; forecasts are not followed: they have cost USD %.4g of the USD %.4g that they may in 24 hours", lost, m.pool.ForecastLoss)
	}
	return d.plan, d.says, err
}

// decision is what a policy decided, and whether VMs were where it had them before.
type decision struct {
	plan scheduler.Plan
	says string
	here bool
}

// turn says that forecasts are followed from now on, or not.
func turn(follows bool, lost, bound float64) string {
	if follows {
		return fmt.Sprintf("forecasts are followed: in 24 hours they may cost USD %.4g", bound)
	}
	return fmt.Sprintf("forecasts are not followed any more: they have cost USD %.4g in 24 hours and must not cost more than USD %.4g; VMs go where they would be without", lost, bound)
}

// account is the pool's books, up to now.
func (a *Autopilot) account(ctx context.Context, s *seer, m matter) (*ahead.Books, error) {
	if s.books == nil {
		var err error
		s.books, err = ahead.Open(m.pool.ForecastLoss, m.now, m.s.Placement())
		return s.books, err
	}
	s.books.Guard.BoundUSD = m.pool.ForecastLoss
	since := m.now.Sub(s.books.At)
	if since > ahead.Window { // nobody has kept them
		s.books.Reset(m.s.Placement())
		s.books.At = m.now
		return s.books, nil
	}
	counted, err := a.world.Counted(ctx, time.Time{}, since)
	if err != nil {
		return nil, err
	}
	if err := s.books.Account(m.seen.survey(counted), m.policy, m.now); err != nil {
		return nil, fmt.Errorf("account for forecasts: %w", err)
	}
	return s.books, nil
}

// keep writes books, for the next leader.
func (a *Autopilot) keep(ctx context.Context, id heliotrope.PoolID, b *ahead.Books) error {
	term, err := a.leads()
	if err != nil {
		return err
	}
	if err := a.records.KeepBooks(ctx, term, id, b); err != nil {
		return fmt.Errorf("keep books of forecasts: %w", err)
	}
	return nil
}
