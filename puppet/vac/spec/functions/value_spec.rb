# frozen_string_literal: true

require 'spec_helper'

describe 'vac::value' do
  it { is_expected.to run.with_params('text').and_return('text') }
  it { is_expected.to run.with_params('').and_return('') }
  it { is_expected.to run.with_params(12.5).and_return('12.5') }
  it { is_expected.to run.with_params(true).and_return('yes') }
  it { is_expected.to run.with_params(['a', 2]).and_return('a 2') }
  it { is_expected.to run.with_params("a\n\n b\r\n").and_return("\"\"\n\ta\n\t b") }
  it { is_expected.to run.with_params('a ;b').and_return("\"\"\n\ta ;b") }
  it { is_expected.to run.with_params('a;b').and_return('a;b') }
end
